"""The stages of one run: the model it starts from, its training, and a second stage on what the first one left."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.save import save_model
from mlpfusion.checkpoint.stage import run_stage
from mlpfusion.compression.compress import compress
from mlpfusion.compression.on_task import working_copy
from mlpfusion.data.chosen import split_train
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.task_model import load_for_task
from mlpfusion.data.unlabelled.data_free import DataFree
from mlpfusion.data.unlabelled.examples import calibration_batches
from mlpfusion.dsee.magnitude import Pruning, check_prunable, zero_smallest
from mlpfusion.dsee.structured.choice import HeadChoice, kept_heads
from mlpfusion.heads.sites import find_heads
from mlpfusion.heads.slicing import slice_heads
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.on_task.job import TaskJob
from mlpfusion.methods.on_task.slimming import Slimming, head_coefficients
from mlpfusion.methods.table import ON_TASK
from mlpfusion.options.selection import Selection
from mlpfusion.progress import Progress
from mlpfusion.reproduce.cost import cost_of, counted_tokens
from mlpfusion.reproduce.experiment import Experiment, GridCell
from mlpfusion.reproduce.rows import Second
from mlpfusion.seeds import seeded
from mlpfusion.storage.typed import typed
from mlpfusion.tune.adapter import load_beside, save_beside
from mlpfusion.tune.distill import distill
from mlpfusion.tune.finetune import RunContext, finetune, train_adapter, train_again
from mlpfusion.tune.start import compressed_start, trained_parameters

Row = dict[str, Any]
TUNING = "tuning"  # folder of the states of a run that are fine-tuning's


@dataclass(frozen=True)
class Job:
    """One run: a cell with a learning rate and a seed, the checkpoint and the data it reads."""

    experiment: Experiment
    cell: GridCell
    source: Checkpoint
    data: EncodedTask
    rate: float
    seed: int
    progress: Progress

    def train_split(self) -> EncodedExamples:
        """The examples to train on."""
        return split_train(self.data, self.experiment.finetune(self.rate, self.seed, self.cell.row.adapter))[0]

    def cost(self, model: Any) -> Row:
        """The entry `cost` of the row: `model` as the run leaves it."""
        config = self.source.training_config
        return {"cost": asdict(cost_of(model, counted_tokens(self.source.tokenizer, config)))}


@dataclass(frozen=True)
class FirstStage:
    """The entries of a row that a first stage leaves beside its weights."""

    row: Row


def one_stage(job: Job, states: Path) -> Row:
    """The entries of the row of a run with one stage. States are kept in the folder `states`."""
    model, row = _start(job, states)
    config = job.experiment.finetune(job.rate, job.seed, job.cell.row.adapter)
    model, run = finetune(model, job.data, config, _context(states / TUNING, job.progress))
    return row | {"run": asdict(run), "device": str(PartialState().device)} | job.cost(model)


def first_stage(job: Job, folder: Path) -> tuple[Path, Row]:
    """Trains a run up to its second stage, or reads what was trained; the checkpoint, and the row's entries.

    An adapter lies beside the weights, as `load_adapted` reads it. The checkpoint is in `folder`. The numbers are those
    of `one_stage`.
    """
    has_adapter = job.cell.row.adapter is not None

    def train(states: Path) -> tuple[Any, FirstStage]:
        model, row = _start(job, states)
        config = job.experiment.finetune(job.rate, job.seed, job.cell.row.adapter)
        where = _context(states, job.progress)
        trained, run = (train_adapter if has_adapter else finetune)(model, job.data, config, where)
        return trained, FirstStage(row | {"run": asdict(run), "device": str(PartialState().device)})

    def save(trained: Any, source: Path, place: Path) -> None:
        if has_adapter:
            save_beside(trained, place, job.seed, is_beside=True)
        save_model(trained.unload() if has_adapter else trained, source, place)

    result, first = run_stage(
        folder, job.source.folder, train, lambda data: typed(FirstStage, data, "the first stage"), save
    )
    return result, first.row


def alone(job: Job, checkpoint: Path, first: Row) -> Row:
    """The entries of the row of a run that is nothing but a first stage: its adapter counts as merged."""
    return first | job.cost(load_for_task(job.source.at(checkpoint), job.data.task, job.seed))


def check_second(model: Any, second: Second) -> None:
    """Raises `InputError` for a second stage that cannot be.

    `model` is under its adapter, if any, and may be on the meta device; it is taken apart.
    """
    from mlpfusion.dsee.masks import maskable_rows
    from mlpfusion.dsee.structured.adapted import check_slice

    if isinstance(second, Pruning):
        check_prunable(model)
    elif isinstance(second, HeadChoice) and isinstance(model, PreTrainedModel):
        second.check(find_heads(model), "heads")
    elif isinstance(second, HeadChoice):
        check_slice(model, second, "heads")
    else:
        maskable_rows(model, second)


def smaller(job: Job, checkpoint: Path) -> Any:
    """The model of a first stage under its adapter, if any, with the first zeros of the second or without its heads.

    Heads go by the update of the adapter, without one by trained coefficients.
    """
    second = job.cell.row.second
    assert second is not None
    model = load_for_task(job.source.at(checkpoint), job.data.task, job.seed)
    if isinstance(second, Pruning):
        zero_smallest(model, second.shares()[0])
        return model
    if isinstance(second, HeadChoice) and job.cell.row.adapter is None:
        return slice_heads(model, kept_heads(_head_coefficients(job, model), second))
    from mlpfusion.dsee.masks import set_zeros
    from mlpfusion.dsee.structured.adapted import slice_adapted

    adapted = load_beside(model, checkpoint)
    if isinstance(second, HeadChoice):
        return slice_adapted(adapted, second)[0]
    set_zeros(adapted, second)
    return adapted


def _head_coefficients(job: Job, model: PreTrainedModel) -> dict[str, Tensor]:
    """The score of every head without an adapter: its coefficient, trained on the task as those of neurons are."""
    method, data = job.cell.row.method, replace(job.data, train=job.train_split())
    config = method if isinstance(method, Slimming) else Slimming()
    with seeded(job.seed):
        learning = TaskJob(working_copy(model, model.device), (), 1.0, data, job.seed, job.progress, ())
        return head_coefficients(learning, config)


def second_stage(job: Job, model: Any, first: Row, states: Path) -> Row:
    """The entries of the row of a run with two stages, after the `first`: trains what `smaller` returned again.

    `run` is that of the second stage, `first` holds the scores of the first. Of a pruning in several rounds `run` is
    the last one, and `rounds` has those before.
    """
    config, second = job.experiment.finetune(job.rate, job.seed, None), job.cell.row.second
    rounds = []
    for number, share in enumerate(second.shares()[1:] if isinstance(second, Pruning) else (), start=1):
        where = _context(states / f"{TUNING}-{number}", job.progress)
        rounds.append(asdict(train_again(model, job.data, config, where)))
        zero_smallest(model, share)
    run = train_again(model, job.data, config, _context(states / TUNING, job.progress))
    told = {"first": first["run"]["scores"], "run": asdict(run)} | ({"rounds": rounds} if rounds else {})
    return first | told | job.cost(model)


def _start(job: Job, states: Path) -> tuple[PreTrainedModel, Row]:
    """The model to fine-tune, after layer-wise tuning if the row has it, and what the row says of both."""
    model, row = _compressed(job)
    if job.cell.row.layerwise:
        teacher = load_for_task(job.source, job.data.task, job.seed)
        tuning = job.experiment.distill(job.rate, job.seed, job.cell.row.layerwise)
        where = _context(states / "layerwise", job.progress)
        stage = distill(model, teacher, job.train_split(), job.data.collate, tuning, where)
        row |= {"distill": asdict(stage)}
    return model, row


def _compressed(job: Job) -> tuple[PreTrainedModel, Row]:
    """The model of a run before any training of it, and its counts of parameters; methods learn from its examples."""
    cell, source, data, seed = job.cell, job.source, job.data, job.seed
    method, train = cell.row.method, job.train_split()
    if method is None or type(method) in ON_TASK:
        model = load_for_task(source, data.task, seed)
        if method is None:
            return model, {"parameters": model.num_parameters(), "nonzero_parameters": model.num_parameters()}
        record = compress(
            model,
            method,
            data=replace(data, train=train),
            layers=cell.layers,
            keep_ratio=cell.keep_ratio,
            seed=seed,
            architecture=source.row,
            progress=job.progress,
        )
    else:
        calibration = _calibration(job, train) if needs_batches(method) else None
        model, record = compressed_start(
            source,
            data.task,
            method,
            Selection(cell.layers, cell.keep_ratio),
            seed=seed,
            architecture=source.row,
            calibration=calibration,
        )
    sizes = {"parameters": record.compressed.parameters, "nonzero_parameters": trained_parameters(record)}
    return model, sizes | {"compress_seconds": record.seconds}


def _calibration(job: Job, train: EncodedExamples) -> list[Batch]:
    """What a calibrated method sees: training texts, or what there is without any."""
    source, count = job.source, job.experiment.calibration_samples
    if job.cell.row.data_free:
        model = load_for_task(source, job.data.task, job.seed)
        return DataFree(count).prepare(source.folder, model, job.seed).batches(model, job.progress)
    return calibration_batches(train, job.data.collate, source.training_config, count, job.seed)


def _context(folder: Path, progress: Progress) -> RunContext:
    folder.mkdir(parents=True, exist_ok=True)
    return RunContext(folder, progress)
