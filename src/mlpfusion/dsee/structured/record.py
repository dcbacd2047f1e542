"""What a run of `mlpfusion slice-heads` leaves: plain data, written as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from mlpfusion.record import Origin, Size

HEADS_RECORD_FILE = "mlp_fusion_heads_record.json"


@dataclass(frozen=True)
class LayerHeads:
    """One attention: its heads by number that stayed, and the scores of all of them before."""

    path: str
    layer: int
    kept: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """FLOPs of the base model, without a head, on one text of `tokens`; of a sliced adapter that stays unmerged too."""

    tokens: int
    before: int
    after: int
    adapter: int | None


@dataclass(frozen=True)
class HeadsRecord:
    """Which heads stayed and what that saves. `scored_by`: `update` of an adapter, or `weights` without one.

    `source_sha256` is the hash of the original attentions. `costs` is None for a model that reads no text.
    """

    recipe: dict[str, Any]
    scored_by: str
    model: Origin
    source_sha256: str
    original: Size
    sliced: Size
    layers: tuple[LayerHeads, ...]
    costs: Costs | None
    versions: dict[str, str]

    def to_json(self) -> str:
        """Formats the record as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"
