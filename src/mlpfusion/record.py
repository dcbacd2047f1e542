"""The JSON record of a run: settings, versions, sizes, and metrics by site."""

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
from mlpfusion.kinds.kind import BlockSize
from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.storage.typed import typed

RECORD_FILE = "mlp_fusion_record.json"
_PACKAGES = ("mlpfusion", "torch", "transformers", "safetensors")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Size:
    """Trained parameters of a model, tied ones once, and bytes of everything stored."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Origin:
    """Source of a checkpoint: Hub id or folder name, revision asked for, commit."""

    name: str
    is_hub_id: bool
    revision: str | None
    commit: str | None


@dataclass(frozen=True)
class SiteRecord:
    """One compressed MLP: widths, trained parameters, and the metrics of the method.

    `kind` is a name in `mlpfusion.kinds.table.KINDS`. `rank` is set for low-rank blocks only, by
    matrix where ranks differ. `parameters` counts what is stored, in a routed block all experts;
    `nonzero_parameters` leaves out masked entries.
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
        """Describes the block: width, rank, share of non-zero parameters, or number of experts."""
        size = BlockSize(self.width, self.parameters, self.nonzero_parameters, self.rank)
        return KIND_NAMES[self.kind].size_words(size, self.metrics)


@dataclass(frozen=True)
class Record:
    """Record of one run of `compress`.

    `seconds` is wall time. `peak_bytes` is the peak memory of the process, or of the GPU on CUDA.
    `threads` are torch's on the CPU. `budget` describes a run with a budget, `model` the checkpoint
    of a run of the command; sizes are then those of the files, with tensors unused by the model's
    class. `divergence` is that of a language model's predictions on short texts, in nats a token.
    `row` says where the MLPs are, for a model type that has no row in the table, `left_out` names the layers of the
    stacks that were not chosen. Of a streamed run `seconds` is the sum over the blocks, in all processes, and
    `expected_peak_bytes` the memory that was expected, without pages of files. `no_stock_form` is the reason why a
    compressed checkpoint, once folded, is not one of plain transformers; None if it is. `load_as` is the class that
    loads the checkpoint: an Auto class of transformers, or SentenceTransformer.
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
    divergence: float | None = None
    row: dict[str, Any] | None = None
    left_out: tuple[str, ...] = ()
    expected_peak_bytes: int | None = None
    no_stock_form: str | None = None
    load_as: str | None = None

    def to_json(self) -> str:
        """Formats the record as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def record_from_dict(data: dict[str, Any], where: str = "the record") -> Record:
    """Reads a record from the data of `Record.to_json`. Raises `InputError`, which names `where`."""
    return typed(Record, data, where)


def model_size(model: nn.Module) -> Size:
    """Counts parameters and bytes of a model as saved. Buffers count as bytes only.

    >>> model_size(nn.Linear(3, 2))
    Size(parameters=8, bytes=32)
    """
    parameters = list(model.parameters())
    stored = parameters + [buffer for buffer in model.state_dict().values() if not buffer.is_floating_point()]
    return Size(sum(p.numel() for p in parameters), sum(t.numel() * t.element_size() for t in stored))


def warn_if_degenerate(records: Sequence[SiteRecord]) -> None:
    """Warns once, with advice, if clusterings are degenerate."""
    bad = [record for record in records if record.metrics.get("degenerate")]
    if bad:
        largest = max(record.metrics["largest_cluster"] / record.original_width for record in bad)
        single = max(record.metrics["singletons"] / record.width for record in bad)
        warnings.warn(
            f"the clustering is degenerate at {len(bad)} of {len(records)} layers: one cluster holds up to "
            f"{100 * largest:.0f} % of the neurons, up to {100 * single:.0f} % of the clusters are single neurons. "
            "Leave these layers out (often they are the first: `layers=last:N`), keep more of them, or try ntk-match",
            DegenerateClusteringWarning,
            stacklevel=4,  # the line where the user calls `compress`
        )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages behind the results."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def peak_bytes(device: torch.device) -> int:
    """Returns the peak memory so far: of the CUDA allocator on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # on Linux ru_maxrss starts at the peak of the parent process
        high_water = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        if high_water:
            return 1024 * int(high_water[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
