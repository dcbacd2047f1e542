"""What an adapter of DSEE trains and which weights under it are zero, as plain numbers."""

import json
from dataclasses import asdict, dataclass

from mlpfusion.record import Origin

SPARSITY_RECORD_FILE = "mlp_fusion_sparsity_record.json"


@dataclass(frozen=True)
class DseeRecord:
    """What trained beside the head: parameters of A and B, values of S, and which entries these are.

    `in_largest`: path of a linear map -> how many of its positions are among as many of the largest |W|.
    """

    rank: int
    scaling: float
    low_rank_parameters: int
    sparse_parameters: int
    in_largest: dict[str, int]


@dataclass(frozen=True)
class MaskedRows:
    """Rows of a linear map: how many of their entries the mask set to zero, and how many zeros there are now."""

    path: str
    start: int
    stop: int
    is_updated: bool
    entries: int
    masked: int
    zeros: int


@dataclass(frozen=True)
class SparsityRecord:
    """Record of `mlpfusion sparsify`.

    `source_sha256` is the hash of the checkpoint, `adapter_sha256` of the file of the adapter, `weights_sha256` of the
    linear maps with their zeros. `parameters` are those of the model without the adapter.
    """

    criterion: str
    updated_ratio: float
    other_ratio: float
    seed: int
    model: Origin
    source_sha256: str
    adapter_sha256: str
    weights_sha256: str
    parameters: int
    adapter_parameters: int
    maps: tuple[MaskedRows, ...]
    seconds: float
    versions: dict[str, str]

    def sparsity(self, *, is_updated: bool | None = None) -> float:
        """Share of zeros in the maps under the adapter, in the others, or in all; 0 without any."""
        maps = [rows for rows in self.maps if is_updated in (None, rows.is_updated)]
        return sum(rows.zeros for rows in maps) / max(1, sum(rows.entries for rows in maps))

    @property
    def zeros(self) -> int:
        """Counts the zeros in all maps."""
        return sum(rows.zeros for rows in self.maps)

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"
