"""The JSON that a stage leaves: what was done, with what, on what, and what came out."""

import json
import platform
import re
import resource
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlpfusion.errors import DegenerateClusteringWarning

RECORD_FILE = "mlp_fusion_record.json"
_PACKAGES = ("mlpfusion", "torch", "transformers", "safetensors")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Size:
    """Trained parameters of a model, shared ones once, and the bytes of all that it stores."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: its Hub id or the name of its folder, the revision asked for, its commit."""

    name: str
    is_hub_id: bool
    revision: str | None
    commit: str | None


@dataclass(frozen=True)
class SiteRecord:
    """One compressed MLP: its widths, its trained parameters, and the numbers of the method.

    `kind` is `narrow`, `low-rank`, `masked` or `routed`, `rank` that of a low-rank block, by matrix where they differ.
    `parameters` are those that are stored, in a routed block those of all experts, `nonzero_parameters` those of them
    that no mask holds at zero.
    """

    path: str
    layer: int
    original_width: int
    width: int
    original_parameters: int
    parameters: int
    metrics: dict[str, float]
    kind: str
    rank: int | dict[str, int] | None
    nonzero_parameters: int

    def size(self) -> str:
        """What the block is now, in words: width, rank, share of its parameters that are not zero, or experts."""
        if self.kind == "narrow":
            return f"{self.width:,}"
        if self.kind == "masked":
            return f"{100 * self.nonzero_parameters / self.parameters:.1f} % non-zero"
        if self.kind == "routed":
            return f"{self.metrics['num_selected']} of {self.metrics['num_experts']} experts"
        if isinstance(self.rank, dict):
            return f"rank {min(self.rank.values())}-{max(self.rank.values())}"
        return f"rank {self.rank}"


@dataclass(frozen=True)
class Record:
    """What `compress` did; `seconds` is wall time, `peak_bytes` the peak memory of the process (of the GPU on CUDA).

    `threads` are those of torch on the CPU. `budget` is what `budget.Spread` says of a run with one, `model`
    where the checkpoint of a run of the command came from. Sizes are then those of the files, with what the model's
    class does not use.
    """

    recipe: dict[str, Any]
    source_sha256: str
    device: str
    threads: int
    dtype: str
    versions: dict[str, str]
    seconds: float
    peak_bytes: int
    original: Size
    compressed: Size
    sites: tuple[SiteRecord, ...]
    budget: dict[str, Any] | None = None
    model: Origin | None = None

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def model_size(model: nn.Module) -> Size:
    """Parameters and bytes of a model as it would be saved (buffers count as bytes, not as parameters)."""
    parameters = list(model.parameters())
    stored = parameters + [buffer for buffer in model.state_dict().values() if not buffer.is_floating_point()]
    return Size(sum(p.numel() for p in parameters), sum(t.numel() * t.element_size() for t in stored))


def warn_if_degenerate(records: Sequence[SiteRecord]) -> None:
    """Warns once, with advice, if clusterings are degenerate; for what `compress` calls directly."""
    bad = [record for record in records if record.metrics.get("degenerate")]
    if bad:
        largest = max(record.metrics["largest_cluster"] / record.original_width for record in bad)
        single = max(record.metrics["singletons"] / record.width for record in bad)
        warnings.warn(
            f"the clustering is degenerate at {len(bad)} of {len(records)} layers: one cluster holds up to "
            f"{100 * largest:.0f} % of the neurons, up to {100 * single:.0f} % of the clusters are single neurons. "
            "Leave these layers out (often they are the first: `layers=last:N`), keep more of them, or try ntk-match",
            DegenerateClusteringWarning,
            stacklevel=5,
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: of the CUDA allocator for a CUDA device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # on Linux ru_maxrss begins with that of the process that started this one
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
