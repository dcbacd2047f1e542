"""What a task method gets to work on, and the steps of training that the methods share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.checks import check_fields, check_range, num_not_finite
from mlpfusion.data.encode import EncodedTask
from mlpfusion.errors import DivergenceError
from mlpfusion.loop.steps import backward, training_batches
from mlpfusion.progress import Progress
from mlpfusion.sites.sites import Site, base_model, linear_maps

# The parts of one batch, texts of like length side by side.
Parts = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class TaskJob:
    """The blocks at `sites` are to keep the share `keep_ratio` of the entries of their matrices.

    `model` is a copy for the method to work on, in fp32 or better on the device of the arithmetic, with the head of
    the task. Of `data` only `train` may be looked at. `seed` draws the order of the data and what else is random;
    dropout draws from the global streams, which were seeded.
    """

    model: PreTrainedModel
    sites: tuple[Site, ...]
    keep_ratio: float
    data: EncodedTask
    seed: int
    progress: Progress

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the head, which is new: those that the base model does not have."""
        own = {id(parameter) for parameter in base_model(self.model).parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in own]


@dataclass(frozen=True)
class TaskTraining:
    """The options of a method that trains on the task: `epochs` over the training data, `batch_size` examples a step.

    `learning_rate` is constant.
    """

    epochs: int
    learning_rate: float
    batch_size: int

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"`learning_rate` must be above 0 and below 1, got {self.learning_rate}")
        check_range("epochs", self.epochs, 1)
        check_range("batch_size", self.batch_size, 1)

    def num_steps(self, job: TaskJob) -> int:
        """Steps of all epochs, at least one."""
        return max(1, round(self.epochs * len(job.data.train) / self.batch_size))


class Steps:
    """The steps of a run: batch after batch in a random order by the seed, forward and backward, progress.

    Raises `DivergenceError` at the first loss that is not finite. `losses` has those of all steps so far.
    """

    def __init__(self, job: TaskJob, config: TaskTraining, num_steps: int):
        batches = training_batches(
            job.data.train, job.data.collate, steps=num_steps, batch_size=config.batch_size, seed=job.seed
        )
        self._batches = enumerate(batches, start=1)
        self._job, self._rate, self.num_steps = job, config.learning_rate, num_steps
        self.losses: list[float] = []

    def take(self, number: int) -> Iterator[int]:
        """The next `number` steps: yields each step, counted from 1, when the gradients of its loss are there.

        They are those of one batch: what the parameters had before is dropped.
        """
        for step, parts in islice(self._batches, number):
            self._job.progress(step - 1, self.num_steps, f"step {step}")
            self._job.model.zero_grad()
            self.losses.append(backward(self._job.model, parts, step, self._rate))
            yield step
        if len(self.losses) == self.num_steps:
            self._job.progress(self.num_steps, self.num_steps, "")

    def segments(self, number: int) -> list[int]:
        """How many steps each of `number` parts of the run has."""
        ends = [round(part * self.num_steps / number) for part in range(number + 1)]
        return [end - start for start, end in pairwise(ends)]


def train_only(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Lets `parameters` have gradients, and no others of the model. Changes their flags."""
    chosen = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def frozen_last(
    scores: Sequence[Mapping[str, Tensor]], kept: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """The scores, which are not negative, by block and matrix; below all of them where `kept` says it is gone."""
    pairs = zip(scores, kept, strict=True)
    return [{name: q.masked_fill(~part[name], -1.0) for name, q in block.items()} for block, part in pairs]


def weight_gradients(model: PreTrainedModel, site: Site) -> dict[str, Tensor]:
    """The gradients of the matrices at `site` by name, laid out as `read_mlp` lays out the matrices."""
    found = {}
    for path, names in linear_maps(site).items():
        linear = base_model(model).get_submodule(path)
        gradient = linear.get_parameter("weight").grad
        assert gradient is not None
        found |= zip(names, (gradient.T if isinstance(linear, Conv1D) else gradient).chunk(len(names)), strict=True)
    return found


def check_finite(tensors: Mapping[str, Tensor], learning_rate: float) -> None:
    """Raises `DivergenceError` if a value that training left is NaN or Inf."""
    for name, tensor in tensors.items():
        if num_not_finite(tensor):
            raise DivergenceError(
                f"`learning_rate` must be small enough for finite weights, got {learning_rate:g}: "
                f"{name} holds NaN or Inf"
            )
