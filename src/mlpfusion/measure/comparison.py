"""Compares methods: layers cut one at a time (paper, Table 1)."""

import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.stage import is_whole
from mlpfusion.compression.calibration.traces import TracedCalibration, trace_calibration
from mlpfusion.compression.checks import check_model
from mlpfusion.compression.compress import compress
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.provenance import check_source
from mlpfusion.errors import DegenerateClusteringWarning
from mlpfusion.kinds.outcome import metrics_of_all
from mlpfusion.measure.approximation import BlockError, BlockReference, Probe, block_errors, references
from mlpfusion.measure.outputs import outputs_on_inputs_of
from mlpfusion.measure.whole_model import ModelError, ModelOutputs, layer_of_other, model_error, model_outputs
from mlpfusion.methods.block import CalibrationScalar
from mlpfusion.methods.names import method_name
from mlpfusion.methods.needs import calibration_needs, needs_batches
from mlpfusion.methods.run import one_shot_method
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.record import Record, SiteRecord
from mlpfusion.sites.proof.row_check import checked_sites
from mlpfusion.sites.sites import Site, by_block, by_holder, find_sites
from mlpfusion.sites.table import Architecture
from mlpfusion.storage.manifest import seal
from mlpfusion.storage.output import staged_folder
from mlpfusion.storage.typed import typed

_ROWS_FILE = "rows.json"


@dataclass(frozen=True)
class ComparisonRow:
    """One method on one layer with one seed.

    `seed` is that of the compression and of the random head. `parameters` counts the stored
    parameters of the block, `nonzero_parameters` those not held at zero by a mask. `size` is text:
    the width, the rank, or the share that is not zero.
    """

    method: str
    options: dict[str, Any]
    seed: int
    kind: str
    size: str
    width: int
    rank: int | dict[str, int] | None
    original_parameters: int
    parameters: int
    nonzero_parameters: int
    seconds: float
    error: BlockError
    metrics: dict[str, float]


# (name of a part of the work, what makes its rows) -> its rows.
Keeping = Callable[[str, Callable[[], list[ComparisonRow]]], list[ComparisonRow]]


def not_kept(_name: str, make: Callable[[], list[ComparisonRow]]) -> list[ComparisonRow]:
    """The rows, made anew."""
    return make()


def kept_below(folder: Path) -> Keeping:
    """Keeps the rows of every part in a sealed folder of its own; those that are there are read instead."""

    def kept(name: str, make: Callable[[], list[ComparisonRow]]) -> list[ComparisonRow]:
        part = folder / re.sub("[^a-z0-9]+", "-", name.lower())
        if not is_whole(part):
            rows = [asdict(row) for row in make()]
            with staged_folder(part, listed=False) as staged:
                (staged / _ROWS_FILE).write_text(json.dumps(rows) + "\n", encoding="utf-8")
                seal(staged)
        rows = json.loads((part / _ROWS_FILE).read_text(encoding="utf-8"))
        return [typed(ComparisonRow, row, str(part / _ROWS_FILE)) for row in rows]

    return kept


def compare_methods(
    model: PreTrainedModel,
    methods: Sequence[Any],
    batches: Sequence[Batch],
    *,
    layers: str,
    keep_ratio: float,
    seeds: Sequence[int],
    scalar: str = "logit",
    calibration: Mapping[int, Sequence[Batch]] | None = None,
    authors_batch: Batch | None = None,
    architecture: Architecture | None = None,
    keeping: Keeping = not_kept,
    progress: Progress = lambda done, total, what: None,
) -> list[ComparisonRow]:
    """Cuts every layer alone, by every method with every seed, and measures.

    `model` is not changed: every cut is made in a copy. `calibration`: batches of the calibrated
    methods, by seed; those of one pooling and one scalar share the traces. `authors_batch`: the
    last batch of the authors' evaluation, for their numbers. `architecture`: row of a model type outside the
    table. `keeping` keeps the rows of one layer with one seed, or has them already. Warnings of degenerate clusterings
    are silenced, the metrics of the row show them. Raises `InputError` for layers, methods or a scalar impossible for
    this model.
    """
    for method in methods:
        one_shot_method(method)
    check_model(model)
    row, all_sites = checked_sites(model, architecture)
    sites = make_plan(all_sites, Selection(layers, keep_ratio)).sites
    original = _Original(model, row, sites, batches, authors_batch, architecture)
    blocks = by_block(sites)
    total, rows = len(seeds) * len(blocks) * len(methods), []
    for seed in seeds:
        cuts = _Cuts(original, methods, keep_ratio, Probe(scalar, seed), calibration[seed] if calibration else None)
        for number, (path, members) in enumerate(blocks.items()):
            told = _counted(progress, len(rows), total, f"{path}, seed {seed}")
            rows += keeping(f"seed-{seed}-{number}-{path}", partial(cuts.rows, members, told))
    progress(total, total, "")
    return rows


@dataclass(frozen=True)
class _Original:
    """The model that is compared with, and what is measured on."""

    model: PreTrainedModel
    row: Architecture
    sites: Sequence[Site]
    batches: Sequence[Batch]
    authors_batch: Batch | None
    architecture: Architecture | None

    @cached_property
    def outputs(self) -> ModelOutputs:
        """Outputs of the whole model."""
        return model_outputs(self.model, self.batches)


@dataclass(frozen=True)
class _Cuts:
    """The cuts of one seed; blocks of the original and traces, which they share, are made when a first one is."""

    original: _Original
    methods: Sequence[Any]
    keep_ratio: float
    probe: Probe
    calibration: Sequence[Batch] | None

    @cached_property
    def blocks(self) -> dict[str, BlockReference]:
        """Kernels and outputs of the blocks of the original, by path."""
        original = self.original
        return references(original.model, original.sites, original.batches, self.probe, original.authors_batch)

    @cached_property
    def traced(self) -> dict[tuple[str, CalibrationScalar], TracedCalibration]:
        """Traces for the calibrated methods, by the pooling and the scalar that they need."""
        if self.calibration is None:
            return {}
        model, sites, seed = self.original.model, self.original.sites, self.probe.seed
        needed = dict.fromkeys(_traced_as(method) for method in self.methods if needs_batches(method))
        return {key: trace_calibration(model, sites, self.calibration, seed, *key) for key in needed}

    def rows(self, members: Sequence[Site], told: Callable[[int, Any], None]) -> list[ComparisonRow]:
        """One row a method, of the block of `members`; `told(number, method)` hears of each before."""
        found = list[ComparisonRow]()
        for number, method in enumerate(self.methods):
            told(number, method)
            found.append(self._row(method, members))
        return found

    def _row(self, method: Any, members: Sequence[Site]) -> ComparisonRow:
        original, path = self.original, members[0].block_path
        blocks = {path: self.blocks[path]}
        traces = self.traced.get(_traced_as(method)) if needs_batches(method) else None
        layer = Selection(str(members[0].layer), self.keep_ratio)
        small, record = _cut(original.model, method, layer, self.probe.seed, traces, original.architecture)
        block = _together(path, [one for one in record.sites if one.path in {site.holder for site in members}])
        is_alone = len(record.sites) == len(by_holder(members))
        outputs = None if is_alone else outputs_on_inputs_of(original.model, small, members, original.batches)
        (error,) = block_errors(
            blocks,
            small,
            original.row,
            original.batches,
            self.probe,
            outputs=outputs,
            authors_batch=original.authors_batch,
        )
        whole = model_error(original.outputs, model_outputs(small, original.batches))
        return _row(method, self.probe.seed, record.seconds, block, replace(error, whole_model=whole))


def _counted(progress: Progress, before: int, total: int, where: str) -> Callable[[int, Any], None]:
    """Tells `progress` of the rows of one block, after `before` others."""
    return lambda number, method: progress(before + number, total, f"{method_name(type(method))}, {where}")


@dataclass(frozen=True)
class CheckpointErrors:
    """Errors of every compressed block by itself, and of the whole model with all of them in place."""

    blocks: list[BlockError]
    whole_model: ModelError


def measure_checkpoint(
    original: Checkpoint,
    compressed: Checkpoint,
    batches: Sequence[Batch],
    probe: Probe,
    authors_batch: Batch | None = None,
) -> CheckpointErrors:
    """Measures every compressed block of a checkpoint, and the whole model.

    Kernels are those of the model with all cuts in place; outputs are measured block by block, on the inputs of the
    original's block. Raises `InputError` if a checkpoint cannot be read, `compressed` is not
    compressed, or `original` is not its source (by the hash of the source weights in the key of a
    compressed checkpoint).
    """
    before, after = (checkpoint.load() for checkpoint in (original, compressed))
    key = check_source(before, after, (original.name, compressed.name))
    sites = [site for site in find_sites(before, key.architecture) if site.holder in key.sites]
    originals = references(before, sites, batches, probe, authors_batch)
    outputs = outputs_on_inputs_of(before, after, sites, batches)
    errors = block_errors(
        originals, after, key.architecture, batches, probe, outputs=outputs, authors_batch=authors_batch
    )
    whole, blocks = model_outputs(before, batches), []
    for (site, *_), error in zip(by_block(sites).values(), errors, strict=True):
        with layer_of_other(before, after, site):
            alone = model_outputs(before, batches)
        blocks.append(replace(error, whole_model=model_error(whole, alone)))
    return CheckpointErrors(blocks, model_error(whole, model_outputs(after, batches)))


def _traced_as(method: Any) -> tuple[str, CalibrationScalar]:
    needs = calibration_needs(method)
    return needs.pooling, needs.scalar


def _cut(
    model: PreTrainedModel,
    method: Any,
    selection: Selection,
    seed: int,
    traces: TracedCalibration | None,
    architecture: Architecture | None,
) -> tuple[PreTrainedModel, Record]:
    """Copy of the model with one layer cut, and its record.

    The seconds of the record include the tracing of the calibration, although several cuts share
    it.
    """
    small = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusteringWarning)
        record = compress(
            small,
            method,
            layers=selection.layers,
            keep_ratio=selection.keep_ratio,
            seed=seed,
            calibration=traces,
            architecture=architecture,
        )
    return small, replace(record, seconds=record.seconds + (0 if traces is None else traces.seconds))


def _together(path: str, records: Sequence[SiteRecord]) -> SiteRecord:
    """The record of one block, from those of all experts where they are modules of their own."""
    first = records[0]
    if len(records) == 1:
        return first
    return replace(
        first,
        path=path,
        original_parameters=sum(one.original_parameters for one in records),
        parameters=sum(one.parameters for one in records),
        nonzero_parameters=sum(one.nonzero_parameters for one in records),
        metrics=metrics_of_all([one.metrics for one in records]),
    )


def _row(method: Any, seed: int, seconds: float, block: SiteRecord, error: BlockError) -> ComparisonRow:
    return ComparisonRow(
        method=method_name(type(method)),
        options=asdict(method),
        seed=seed,
        kind=block.kind,
        size=block.size(),
        width=block.width,
        rank=block.rank,
        original_parameters=block.original_parameters,
        parameters=block.parameters,
        nonzero_parameters=block.nonzero_parameters,
        seconds=seconds,
        error=error,
        metrics=block.metrics,
    )
