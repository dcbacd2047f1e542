"""Experiments: grids of fine-tuning runs, described by YAML files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlpfusion.checks import check_given
from mlpfusion.data.tasks import find_task
from mlpfusion.errors import InputError, shown
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.decoding import Decoding
from mlpfusion.options.distill import Distill
from mlpfusion.options.fields import from_plain, key, part, plain, read_values
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.options.training import Finetune
from mlpfusion.reproduce.named import experiment_file
from mlpfusion.reproduce.rows import TableRow, parse_table_row

_REQUIRED = ("model", "out", "tasks", "methods", "layers", "keep_ratio", "seeds", "learning_rate")
CHARTS = ("scores", "layers", "keep_ratio", "training_loss", "recovery")


@dataclass(frozen=True)
class Experiment:
    """A grid: methods x tasks x `layers` x `keep_ratio` x `seeds`.

    A method is `NAME[:OPTION=VALUE..][+layerwise[=EPOCHS]][+lora[=R[:OPTION=VALUE..]]]`, or `full` (nothing
    compressed) with the same additions; `+dsee[=RANK[:OPTION=VALUE..]]` stands in the place of LoRA. A second stage
    follows an adapter: with `+zeros=RATIO[:OPTION=VALUE..]` weights are zeroed, with `+heads=N[:scope=global]`
    heads go, then the adapter trains again, by the same settings. `full+zeros=RATIO[:rounds=N]` prunes the
    fine-tuned model by magnitude and trains it again, zeros fixed. `references` are other models, fine-tuned in
    full. Every cell chooses its learning rate with the first seed, among `learning_rate` (with LoRA or DSEE
    `lora_learning_rate`, if given). Calibrated methods see `calibration_samples` training texts without labels,
    with `+data-free` none (as `compress --data-free`); layer-wise tuning sees all. `chart` is `scores`, `layers` or
    `keep_ratio` (scores over either), `training_loss`, or `recovery` (scores over the steps, every `eval_steps` of
    them). `name` begins the file names of the report. `adapter_targets` are the linear maps of adapters where a row
    names none, as `targets` of `--lora`. `max_length` and `new_head` are options of `tune`, all other fields of
    `Finetune`.
    """

    name: str = key("", free=True)
    title: str = key("", free=True)
    description: str = key("", free=True)
    model: str = key("", free=True)
    out: str = key("", free=True)
    references: tuple[str, ...] = key((), free=True)
    tasks: tuple[str, ...] = key((), free=True)
    methods: tuple[str, ...] = key((), free=True)
    layers: tuple[str, ...] = key(("all",), free=True)
    keep_ratio: tuple[float, ...] = key((0.25,), free=True)
    seeds: tuple[int, ...] = key((0, 1, 2), free=True)
    learning_rate: tuple[float, ...] = key((2e-5,), free=True)
    layerwise_learning_rate: float | None = None
    lora_learning_rate: tuple[float, ...] = key((), free=True)
    epochs: int = 3
    batch_size: int = Finetune.batch_size
    max_length: int | None = None
    new_head: bool = False
    warmup_ratio: float = Finetune.warmup_ratio
    weight_decay: float = Finetune.weight_decay
    split_seed: int = 0
    holdout: float = Finetune.holdout
    select_on: str = Finetune.select_on
    max_train_samples: int | None = None
    freeze_router: bool = False
    eval_steps: int | None = None
    calibration_samples: int = 256
    adapter_targets: str | None = key(None, free=True)
    decoding: Decoding = part(Decoding)
    precision: str = "fp32"
    device: str = key("auto", free=True)
    mlps: MLPOptions = part(MLPOptions)
    chart: str = key("scores", free=True)

    def rates(self, row: TableRow) -> tuple[float, ...]:
        """Learning rates to try for one row of the table."""
        return self.lora_learning_rate if row.adapter and self.lora_learning_rate else self.learning_rate

    def finetune(self, learning_rate: float, seed: int, adapter: Lora | Dsee | None) -> Finetune:
        """Config of one run. Raises `InputError` for a value out of range."""
        return Finetune(
            learning_rate=learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            warmup_ratio=self.warmup_ratio,
            weight_decay=self.weight_decay,
            seed=seed,
            split_seed=self.split_seed,
            holdout=self.holdout,
            select_on=self.select_on,
            max_train_samples=self.max_train_samples,
            lora=adapter if isinstance(adapter, Lora) else None,
            dsee=adapter if isinstance(adapter, Dsee) else None,
            precision=self.precision,
            device=self.device,
            freeze_router=self.freeze_router,
            eval_steps=self.eval_steps,
        )

    def distill(self, learning_rate: float, seed: int, epochs: int) -> Distill:
        """Config of the layer-wise stage of one run. Raises `InputError` for a value out of range."""
        return Distill(
            learning_rate=self.layerwise_learning_rate or learning_rate,
            epochs=epochs,
            batch_size=self.batch_size,
            seed=seed,
            precision=self.precision,
            device=self.device,
        )


@dataclass(frozen=True)
class GridCell:
    """One row on one task; its runs differ in learning rate and seed."""

    task: str
    row: TableRow
    layers: str
    keep_ratio: float

    @property
    def first(self) -> "GridCell":
        """The cell of the first stage alone; itself without a second."""
        return replace(self, row=replace(self.row, second=None))


def read_experiment(name: str, changes: Mapping[str, Any]) -> Experiment:
    """Reads an experiment by name or YAML file; `changes` replace its fields.

    Raises `InputError` for an unknown name or field, and for values that no run could have.
    """
    file = experiment_file(name)
    experiment = from_plain(Experiment, {"name": file.stem, **read_values(file, "experiment"), **changes})
    check_experiment(experiment)
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """Raises `InputError` for anything wrong that shows without the model and the data."""
    for name, given in plain(experiment).items():
        if name not in _REQUIRED:
            continue
        check_given(bool(given), name)
        if isinstance(given, tuple) and len(set(given)) < len(given):
            raise InputError(f"`{name}` must not repeat, got {', '.join(map(str, given))}")
    if experiment.chart not in CHARTS:
        raise InputError(f"`chart` must be one of {', '.join(CHARTS)}, got {shown(experiment.chart)}")
    if experiment.chart == "recovery" and experiment.eval_steps is None:
        raise InputError("`chart` must not be recovery without `eval_steps`, which says how often a run is scored")
    if experiment.calibration_samples < 1:
        raise InputError(f"`calibration_samples` must be at least 1, got {experiment.calibration_samples}")
    if experiment.select_on == "last" and any(len(experiment.rates(row)) > 1 for row in table_rows(experiment)):
        raise InputError("`select_on` must be holdout or validation to choose among several rates, got 'last'")
    for task in experiment.tasks:
        find_task(task)
    for row in table_rows(experiment):
        for rate in experiment.rates(row):
            for seed in experiment.seeds:
                experiment.finetune(rate, seed, row.adapter)
            if row.layerwise:
                experiment.distill(rate, experiment.seeds[0], row.layerwise)


def table_rows(experiment: Experiment) -> list[TableRow]:
    """Rows of the table, references first. Raises `InputError` for an unknown method or addition."""
    references = [TableRow(model) for model in experiment.references]
    rows = [parse_table_row(text, experiment.model) for text in experiment.methods]
    return references + [row.with_targets(experiment.adapter_targets) for row in rows]


def cells(experiment: Experiment) -> Iterator[GridCell]:
    """Yields the cells of the grid, task by task.

    Uncompressed models have one cell per task, with all layers and ratio 1.

    >>> grid = Experiment(model="m", tasks=("rte",), methods=("full", "fusion"), layers=("last:1", "last:2"))
    >>> [(cell.row.label, cell.layers) for cell in cells(grid)]
    [('full', 'all'), ('fusion', 'last:1'), ('fusion', 'last:2')]
    """
    for task in experiment.tasks:
        for row in table_rows(experiment):
            if row.method is None:
                yield GridCell(task, row, "all", 1.0)
                continue
            for layers in experiment.layers:
                for keep_ratio in experiment.keep_ratio:
                    yield GridCell(task, row, layers, keep_ratio)
