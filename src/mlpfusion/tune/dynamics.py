"""Training dynamics: the logits of a model on held-out inputs along a run that others repeat batch by batch."""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from mlpfusion.architectures.sites import check_in_memory
from mlpfusion.checks import check_fields
from mlpfusion.errors import DivergenceError, InputError, shown
from mlpfusion.outcomes import Progress, site_generator
from mlpfusion.tasks.encode import EncodedExamples
from mlpfusion.tune.config import Finetune
from mlpfusion.tune.start import unlabelled_batches

# Where the kernel rules, the first steps, is measured whatever `every` is.
FIRST_STEPS = (1, 2, 5, 10)
_PART = 8


@dataclass(frozen=True)
class Dynamics:
    """One run: `steps` of AdamW at a constant rate in eval mode, so without dropout, in fp32, all parameters trained.

    The betas and the epsilon are those of `Finetune`; there is no weight decay and no clipping, so that nothing but the
    gradients moves the logits. `seed` draws the order of the data, and nothing else. The logits are kept before the
    first step, after steps 1, 2, 5 and 10, after each multiple of `every`, and after the last.
    """

    steps: int = 100
    learning_rate: float = 5e-5
    batch_size: int = 32
    every: int = 25
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        checks = {
            "steps": (self.steps >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < 1, "above 0 and below 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "every": (self.every >= 1, "at least 1"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise InputError(f"`{name}` must be {allowed}, got {shown(getattr(self, name))}")

    def measured_at(self) -> tuple[int, ...]:
        """The steps after which the logits are kept, ascending; the beginning (0) is not among them."""
        found = {*FIRST_STEPS, *range(self.every, self.steps, self.every), self.steps}
        return tuple(sorted(step for step in found if step <= self.steps))


@dataclass(frozen=True)
class TrainingPath:
    """What a run leaves: the held-out logits at the beginning and after the measured steps, and the loss of each batch.

    A loss is that of the batch before the step on it. `seconds_per_step` is the median of forward, backward and update.
    """

    logits: Float[Tensor, "measured samples outputs"]
    losses: Float[Tensor, " steps"]
    seconds_per_step: float


def train_path(
    model: PreTrainedModel,
    examples: EncodedExamples,
    held_out: EncodedExamples,
    collate: DataCollatorWithPadding,
    config: Dynamics,
    progress: Progress = lambda done, total, what: None,
) -> TrainingPath:
    """Trains `model`, in place and where it is, on `examples` with labels, and keeps its logits on `held_out`.

    The batches depend on `examples` and `config` alone: they are the same for every model. On the CPU the same model
    gives the same bytes. Raises `InputError`, before anything is changed, for an offloaded model, and `DivergenceError`
    at the first loss that is not finite.
    """
    check_in_memory(model)
    model.eval()
    defaults = Finetune()
    betas = (defaults.adam_beta1, defaults.adam_beta2)
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": betas, "eps": defaults.adam_epsilon}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True, **options)
    questions = unlabelled_batches(held_out, collate)
    logits, losses, seconds = [held_out_logits(model, questions)], [], []
    measured_at = set(config.measured_at())
    for step, batch in enumerate(training_batches(examples, collate, config), start=1):
        progress(step - 1, config.steps, f"step {step}")
        started = time.perf_counter()
        loss = backward(model, batch, step, config.learning_rate)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        seconds.append(time.perf_counter() - started)
        if step in measured_at:
            logits.append(held_out_logits(model, questions))
    progress(config.steps, config.steps, "")
    return TrainingPath(torch.stack(logits), torch.tensor(losses, dtype=torch.float64), statistics.median(seconds))


def training_batches(
    examples: EncodedExamples, collate: DataCollatorWithPadding, config: Dynamics
) -> Iterator[list[Mapping[str, Tensor]]]:
    """The batches of a run, one a step: `examples` in a random order by the seed, in a new one after every epoch.

    A batch comes in parts of texts of like length, which saves half of the work on padding. Batches are not grouped by
    length, as the first steps would be those on the longest texts then.
    """
    generator = site_generator(config.seed, "order of the training data")
    needed = config.steps * config.batch_size
    order: list[int] = []
    while len(order) < needed:
        order += torch.randperm(len(examples), generator=generator).tolist()
    for start in range(0, needed, config.batch_size):
        batch = sorted(order[start : start + config.batch_size], key=lambda index: examples.lengths[index])
        yield [
            collate([examples[index] for index in batch[part : part + _PART]]) for part in range(0, len(batch), _PART)
        ]


def distances(path: TrainingPath, full: TrainingPath) -> list[float]:
    """||df_c(t) - df(t)|| / ||df(t)|| after each measured step: df is the change of the logits since the beginning.

    The norms run over all held-out samples and outputs (Frobenius).
    """
    ours, theirs = _changes(path), _changes(full)
    return ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).tolist()


def lengths(path: TrainingPath, full: TrainingPath) -> list[float]:
    """||df_c(t)|| / ||df(t)|| after each measured step: 1 for a model whose logits move as far as the full model's."""
    return (_changes(path).norm(dim=1) / _changes(full).norm(dim=1)).tolist()


def backward(model: PreTrainedModel, batch: Sequence[Mapping[str, Tensor]], step: int, learning_rate: float) -> float:
    """The mean loss over the examples of all parts of a batch; its gradients are added to those of the parameters.

    Raises `DivergenceError`, which names the step and the rate, if the loss is not finite.
    """
    total, size = 0.0, sum(len(part["labels"]) for part in batch)
    for part in batch:
        loss = model(**_on_device(model, part)).loss * (len(part["labels"]) / size)
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise DivergenceError(
            f"`learning_rate` must be small enough for a finite loss, got {learning_rate:g}: "
            f"the loss became {total} in step {step}"
        )
    return total


def _changes(path: TrainingPath) -> Float[Tensor, "steps numbers"]:
    return (path.logits[1:].double() - path.logits[0].double()).flatten(1)


@torch.no_grad()
def held_out_logits(
    model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]
) -> Float[Tensor, "samples outputs"]:
    """The logits of all batches in fp32 on the CPU; the model keeps its mode."""
    return torch.cat([model(**_on_device(model, batch)).logits for batch in batches]).float().cpu()


def _on_device(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
