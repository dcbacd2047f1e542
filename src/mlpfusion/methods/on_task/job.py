"""The job of a method with training on a task, and the training steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from torch import Tensor, nn
from transformers import PreTrainedModel

from mlpfusion.checks import check_fields, check_range, num_not_finite
from mlpfusion.data.encode import EncodedTask
from mlpfusion.errors import DivergenceError
from mlpfusion.loop.steps import backward, training_batches
from mlpfusion.progress import Progress
from mlpfusion.sites.sites import Site, base_model

# The parts of one batch, each with texts of similar length.
Parts = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class TaskJob:
    """Everything a task method works with; `keep_ratio` is the share of matrix entries to keep.

    A method that narrows keeps the sum of `widths`, one a site, in steps of `round_to`.
    `model` is a copy for the method to change, in fp32 or better on the device of the arithmetic,
    with the head of the task. Only `data.train` may be used. `seed` draws the order of the data and
    other random numbers; dropout draws from the global generators, which are seeded.
    """

    model: PreTrainedModel
    sites: tuple[Site, ...]
    keep_ratio: float
    data: EncodedTask
    seed: int
    progress: Progress
    widths: tuple[int, ...]
    round_to: int = 1

    def head_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the new head: all outside the base model."""
        base = {id(parameter) for parameter in base_model(self.model).parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in base]


@dataclass(frozen=True)
class TaskTraining:
    """Options of training on the task, at a constant `learning_rate`.

    `epochs` passes over the training data are made. `batch_size` is the number of examples a step.
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
        """Number of steps of all epochs, at least one."""
        return max(1, round(self.epochs * len(job.data.train) / self.batch_size))


class Steps:
    """Training steps: batches in random order by the seed, forward, backward, progress.

    `losses` holds the losses so far. Raises `DivergenceError` at the first loss that is not finite.
    """

    def __init__(self, job: TaskJob, config: TaskTraining, num_steps: int):
        batches = training_batches(
            job.data.train, job.data.collate, steps=num_steps, batch_size=config.batch_size, seed=job.seed
        )
        self._batches = enumerate(batches, start=1)
        self._job, self._rate, self.num_steps = job, config.learning_rate, num_steps
        self.losses: list[float] = []

    def take(self, number: int) -> Iterator[int]:
        """Runs `number` steps; yields each step, counted from 1, once its gradients are set.

        The gradients are those of one batch: earlier ones are dropped.
        """
        for step, parts in islice(self._batches, number):
            self._job.progress(step - 1, self.num_steps, f"step {step}")
            self._job.model.zero_grad()
            self.losses.append(backward(self._job.model, parts, step, self._rate))
            yield step
        if len(self.losses) == self.num_steps:
            self._job.progress(self.num_steps, self.num_steps, "")

    def segments(self, number: int) -> list[int]:
        """Splits the steps into `number` nearly equal parts. Returns their lengths."""
        ends = [round(part * self.num_steps / number) for part in range(number + 1)]
        return [end - start for start, end in pairwise(ends)]


def train_only(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Sets `requires_grad` for `parameters`, and clears it for all others of the model.

    >>> model = nn.Linear(2, 2)
    >>> train_only(model, [model.bias])
    >>> model.weight.requires_grad, model.bias.requires_grad
    (False, True)
    """
    trained = {id(parameter) for parameter in parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def frozen_last(
    scores: Sequence[Mapping[str, Tensor]], kept: Sequence[Mapping[str, Tensor]]
) -> list[dict[str, Tensor]]:
    """Ranks masked entries last: scores (at least 0) where the mask is True, -1 elsewhere.

    >>> mask = torch.tensor([True, False])
    >>> frozen_last([{"up": torch.ones(2)}], [{"up": mask}])[0]["up"].tolist()
    [1.0, -1.0]
    """
    pairs = zip(scores, kept, strict=True)
    return [{name: q.masked_fill(~part[name], -1.0) for name, q in block.items()} for block, part in pairs]


def matrix_gradients(model: PreTrainedModel, site: Site) -> dict[str, Tensor]:
    """Returns the gradients of the matrices at `site` by name, in the layout of `read_mlp`."""
    gradients = {}
    for weight in site.weights:
        if not weight.is_bias:
            gradient = base_model(model).get_parameter(weight.name).grad
            assert gradient is not None
            gradients[weight.field] = weight.view(gradient)
    return gradients


def check_trained(tensors: Mapping[str, Tensor], learning_rate: float) -> None:
    """Raises `DivergenceError` for NaN or Inf in a trained tensor."""
    for name, tensor in tensors.items():
        if num_not_finite(tensor):
            raise DivergenceError(
                f"`learning_rate` must be small enough for finite weights, got {learning_rate:g}: "
                f"{name} holds NaN or Inf"
            )
