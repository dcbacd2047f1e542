"""Training dynamics: logits on held-out inputs along a training run."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import to_device
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE
from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.data.language.labels import is_shifted
from mlpfusion.data.task_kind import TaskKind
from mlpfusion.data.tasks import kind_of_task
from mlpfusion.data.unlabelled.examples import labelled_batches
from mlpfusion.loop.steps import adamw, backward, training_batches
from mlpfusion.options.dynamics import Dynamics
from mlpfusion.progress import Progress
from mlpfusion.sites.sites import check_in_memory


@dataclass(frozen=True)
class TrainingPath:
    """Held-out logits along a run (step 0 and the measured steps), and losses.

    A loss is taken before the step on its batch. `seconds_per_step` is the median of forward,
    backward and update.
    """

    logits: Float[Tensor, "measured samples outputs"]
    losses: Float[Tensor, " steps"]
    seconds_per_step: float


def train_path(
    model: PreTrainedModel,
    data: EncodedTask,
    held_out: EncodedExamples,
    config: Dynamics,
    progress: Progress = lambda done, total, what: None,
) -> TrainingPath:
    """Trains `model` in place on `data.train`, and keeps its logits on `held_out`.

    Batches depend on `data` and `config` alone, so they are the same for every model. On the
    CPU the same model gives the same bytes. Raises `InputError` for an offloaded model (before any
    change), and `DivergenceError` at the first loss that is not finite.
    """
    check_in_memory(model)
    model.eval()
    optimizer = adamw(list(model.parameters()), config.learning_rate)
    kind = kind_of_task(data.task)
    questions = labelled_batches(held_out, data.collate, max(1, BATCH_SIZE // kind.answers))
    logits, losses, seconds = [held_out_logits(model, questions, kind)], [], []
    measured_at = set(config.measured_at())
    batches = training_batches(
        data.train, data.collate, steps=config.steps, batch_size=config.batch_size, seed=config.seed
    )
    for step, batch in enumerate(batches, start=1):
        progress(step - 1, config.steps, f"step {step}")
        started = time.perf_counter()
        loss = backward(model, batch, step, config.learning_rate)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        seconds.append(time.perf_counter() - started)
        if step in measured_at:
            logits.append(held_out_logits(model, questions, kind))
    progress(config.steps, config.steps, "")
    return TrainingPath(torch.stack(logits), torch.tensor(losses, dtype=torch.float64), statistics.median(seconds))


def distances(path: TrainingPath, full: TrainingPath) -> list[float]:
    """||df_c(t) - df(t)|| / ||df(t)|| after each measured step t.

    df(t) = logits(t) - logits(0); Frobenius norms over all held-out samples and outputs.

    >>> full = TrainingPath(torch.tensor([[[0.0]], [[2.0]]]), torch.zeros(1), 0.1)
    >>> small = TrainingPath(torch.tensor([[[1.0]], [[2.0]]]), torch.zeros(1), 0.1)
    >>> distances(small, full)
    [0.5]
    """
    ours, theirs = _changes(path), _changes(full)
    return ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).tolist()


def lengths(path: TrainingPath, full: TrainingPath) -> list[float]:
    """||df_c(t)|| / ||df(t)|| after each measured step t; 1 for logits moving equally far.

    >>> full = TrainingPath(torch.tensor([[[0.0]], [[2.0]]]), torch.zeros(1), 0.1)
    >>> lengths(full, full)
    [1.0]
    """
    return (_changes(path).norm(dim=1) / _changes(full).norm(dim=1)).tolist()


def _changes(path: TrainingPath) -> Float[Tensor, "steps numbers"]:
    return (path.logits[1:].double() - path.logits[0].double()).flatten(1)


@torch.no_grad()
def held_out_logits(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], kind: TaskKind
) -> Float[Tensor, "samples outputs"]:
    """Logits of all predictions that are compared, fp32 on the CPU; keeps the model's mode."""
    found = []
    for batch in batches:
        placed = to_device(batch, model.device)
        decoder_reads_labels = model.config.is_encoder_decoder and placed["labels"].ndim == 2
        unused = () if decoder_reads_labels else ("labels",)
        logits = model(**{name: tensor for name, tensor in placed.items() if name not in unused}).logits
        found.append(kind.answer_logits(logits, placed["labels"], shifted=is_shifted(model.config)).float().cpu())
    return torch.cat(found)
