"""Records from the disk, each checked before a word of it is used."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlpfusion.checks import user_path
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.export.run import EXPORT_RECORD_FILE, ExportRecord
from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.measure.evaluation.task import RECORD_FILE as EVALUATION_FILE
from mlpfusion.measure.run_dynamics import RECORD_FILE as DYNAMICS_FILE
from mlpfusion.record import RECORD_FILE, Record, SiteRecord, record_from_dict
from mlpfusion.report.comparison_chart import COMPARISON_FILES
from mlpfusion.report.html.grid_record import grid
from mlpfusion.report.html.measured.checks import check_some, check_versions
from mlpfusion.report.html.measured.records import (
    AnyEvaluation,
    Comparison,
    Dynamics,
    comparison,
    dynamics,
    evaluation,
    export,
)
from mlpfusion.storage.typed import typed
from mlpfusion.tune.record import (
    DISTILL_RECORD_FILE,
    TUNE_RECORD_FILE,
    DistillRecord,
    TuneRecord,
    distill_record_from_dict,
    tune_record_from_dict,
)

MAX_BYTES = 2**28  # far above any record: a grid of 100 runs has 1 MiB
# Of a grid it is the JSON data, as the tables and charts of `reproduce` take it.
AnyRecord = Record | TuneRecord | DistillRecord | ExportRecord | Comparison | Dynamics | AnyEvaluation | dict[str, Any]


@dataclass(frozen=True)
class _Calibration:
    samples: int
    tokens: int
    file: str = ""


@dataclass(frozen=True)
class _Task:
    name: str
    samples: int


@dataclass(frozen=True)
class _Recipe:
    """The known part of the recipe of a compression."""

    method: str
    layers: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    calibration: _Calibration | None = None
    task: _Task | None = None


@dataclass(frozen=True)
class _TuneRecipe:
    """The known part of the recipe of a fine-tuning."""

    model: str
    epochs: int
    batch_size: int


@dataclass(frozen=True)
class _DistillRecipe:
    """The known part of the recipe of a distillation."""

    original: str
    compressed: str
    learning_rate: float
    epochs: int


@dataclass(frozen=True)
class _Share:
    path: str
    width: int
    share: float
    error: float


@dataclass(frozen=True)
class _Budget:
    """The known part of a budget."""

    budget: str | float
    unit: str
    total: int
    kept: int
    measure: str
    sites: tuple[_Share, ...]


@dataclass(frozen=True)
class _Evaluation:
    """The known part of a score while a run trained."""

    step: int
    scores: dict[str, float]


def read_records(names: Sequence[str]) -> list[AnyRecord]:
    """The records in the folders `names`, each once; a name may be a file too.

    Raises `InputError` for a place without one, and for a record that is unknown, broken or of another version.
    """
    records: list[AnyRecord] = []
    for name in names:
        # a tuned model has the record of its compression too
        records += [record for record in map(_read, _files(name)) if record not in records]
    return records


def _files(name: str) -> list[Path]:
    place = user_path("folders", name)
    files = [place] if place.is_file() else [place / file for file in _READERS if (place / file).is_file()]
    if not files and (place / "runs").is_dir():
        files = sorted(place.glob("*.json"))
    if not files:
        raise InputError(f"`folders` must hold a record ({', '.join(_READERS)}, or that of a grid), got {name}")
    return files


def _read(file: Path) -> AnyRecord:
    data = _json(file)
    if not isinstance(data, dict):
        raise InputError(f"{file} must hold a record, got {shown(data)}")
    reader = _READERS.get(file.name) or next((one for keys, one in _BY_KEYS if keys <= data.keys()), None)
    if reader is None:
        raise InputError(f"{file} must be a record of {_MADE_BY}, got {shown(list(data))}")
    return reader(data, str(file))


def _compression(data: dict[str, Any], where: str) -> Record:
    record = record_from_dict(data, where)
    check_some(record.sites, "sites", where)
    for site in record.sites:
        _check_site(site, where)
    if min(record.original.parameters, record.original.bytes) < 1:
        raise InputError(f"{where} must have sizes of at least 1 in `original`, got {record.original}")
    check_versions(record.versions, where)
    typed(_Recipe, record.recipe, f"the recipe of {where}", in_part=True)
    if record.budget is not None:
        typed(_Budget, record.budget, f"the budget of {where}", in_part=True)
    return record


def _tuning(data: dict[str, Any], where: str) -> TuneRecord:
    record = tune_record_from_dict(data, where)
    check_some(record.runs, "runs", where)
    check_versions(record.versions, where)
    typed(_TuneRecipe, record.recipe, f"the recipe of {where}", in_part=True)
    return record


def _distillation(data: dict[str, Any], where: str) -> DistillRecord:
    record = distill_record_from_dict(data, where)
    check_versions(record.versions, where)
    typed(_DistillRecipe, record.recipe, f"the recipe of {where}", in_part=True)
    return record


_READERS: dict[str, Callable[[dict[str, Any], str], AnyRecord]] = {
    RECORD_FILE: _compression,
    DISTILL_RECORD_FILE: _distillation,
    TUNE_RECORD_FILE: _tuning,
    EXPORT_RECORD_FILE: export,
    COMPARISON_FILES[0]: comparison,
    DYNAMICS_FILE: dynamics,
    EVALUATION_FILE: evaluation,
}
# Of records under other names the entries that tell them apart.
_BY_KEYS: tuple[tuple[set[str], Callable[[dict[str, Any], str], AnyRecord]], ...] = (
    ({"rows", "tasks"}, grid),
    ({"rows", "measured_at"}, dynamics),
    ({"rows", "scalar"}, comparison),
)
_MADE_BY = "compress, tune, distill, export, compare, dynamics, evaluate or reproduce"


def _check_site(site: SiteRecord, where: str) -> None:
    """Raises `InputError` for a block of an unknown kind or size."""
    if site.kind not in KIND_NAMES:
        raise InputError(f"{where} must have kinds among {', '.join(KIND_NAMES)}, got {shown(site.kind)}")
    if min(site.original_width, site.width, site.original_parameters, site.parameters) < 1:
        raise InputError(f"{where} must have widths and parameters of at least 1, {shown(site.path)} has not")
    needed = ("num_experts", "num_selected") if site.kind == "routed" else ()
    if site.rank == {} or any(name not in site.metrics for name in needed):
        raise InputError(f"{where} must have the size of every block, {shown(site.path)} has none")


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is longer than {MAX_BYTES:,} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} must be a readable record: {one_line(error)}") from error
