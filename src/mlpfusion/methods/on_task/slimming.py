"""Neurons and heads by coefficients under an L1 penalty: network slimming (Liu et al., ICCV 2017) as in EarlyBERT.

EarlyBERT: Chen et al., ACL 2021, arXiv 2101.00063.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlpfusion.checks import check_range
from mlpfusion.heads.sites import find_heads
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.loop.steps import adamw
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.nirvana import widths_under_one_threshold
from mlpfusion.methods.data_free.neuron_pruning import keep_best
from mlpfusion.methods.on_task.job import Steps, TaskJob, TaskTraining, check_trained
from mlpfusion.mlp import clone
from mlpfusion.seeds import site_generator
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site, base_model, linear_maps, read_mlp


@dataclass(frozen=True)
class Slimming(TaskTraining):
    """Trains a coefficient for every neuron with all weights, and keeps the neurons of the largest.

    The coefficients start at 1 and multiply what the neurons put out. `penalty` times the sum of their sizes is added
    to the loss. Weights and coefficients train at a constant `learning_rate`, and are thrown away: the kept neurons
    have the weights from before. The neurons of all layers are ranked together, so the widths differ: the layers keep
    the share that is asked for in sum, each at least a step of `--round-to`. `epochs` passes over the training data are
    made. `batch_size` is the number of examples a step.

    >>> Slimming().penalty
    0.0001
    """

    epochs: int = 1
    learning_rate: float = 2e-5  # rate, batch size and penalty of EarlyBERT, which stops after a fifth of an epoch
    batch_size: int = 32
    penalty: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("penalty", self.penalty, 0)


@dataclass(frozen=True)
class Inputs:
    """Inputs of a linear map that get coefficients, one for every `size` of them that follow one another."""

    path: str
    size: int
    count: int


def compress(job: TaskJob, config: Slimming) -> list[Narrowed]:
    """Keeps the neurons with the largest coefficients, under one threshold for all blocks, in their old order.

    Among equal ones those of the earlier block stay, then those of the lower index.
    """
    pretrained = [clone(read_mlp(job.model, site)) for site in job.sites]
    outputs = [Inputs(_down(site), 1, site.intermediate_size) for site in job.sites]
    scores = [one.double() for one in train_coefficients(job, config, outputs).values()]
    steps = [job.round_to] * len(scores)
    widths = widths_under_one_threshold([score[None] for score in scores], sum(job.widths), steps)
    return [
        keep_best(Block(mlp, width, site_generator(job.seed, site.path)), score)
        for site, mlp, width, score in zip(job.sites, pretrained, widths, scores, strict=True)
    ]


def head_coefficients(job: TaskJob, config: Slimming) -> dict[str, Float[Tensor, " heads"]]:
    """Trains a coefficient for every head in the place of every neuron; returns their sizes by attention.

    Queries that share a key share a coefficient. Raises `InputError` where heads cannot be removed.
    """
    sites = find_heads(job.model)
    inputs = [Inputs(site.output, site.shared * site.head_size, site.num_heads) for site in sites]
    sizes = train_coefficients(job, config, inputs)
    return {site.path: sizes[site.output] for site in sites}


def train_coefficients(
    job: TaskJob, config: Slimming, inputs: Sequence[Inputs]
) -> dict[str, Float[Tensor, " coefficients"]]:
    """Trains coefficients of the `inputs`, and all weights of the job's model; returns their sizes by path."""
    base = base_model(job.model)
    trained = {one.path: nn.Parameter(torch.ones(one.count, device=job.model.device)) for one in inputs}
    optimizer = adamw([*job.model.parameters(), *trained.values()], config.learning_rate)
    steps = Steps(job, config, config.num_steps(job))
    with hooks() as handles:
        for one in inputs:
            handles.append(_multiplied(base.get_submodule(one.path), trained[one.path], one.size))
        job.model.train()
        for _ in steps.take(steps.num_steps):
            _add_penalty(trained, config.penalty)
            optimizer.step()
            optimizer.zero_grad()
    sizes = {path: one.detach().abs() for path, one in trained.items()}
    check_trained({f"coefficients of {path}": one for path, one in sizes.items()}, config.learning_rate)
    return sizes


def _multiplied(linear: nn.Module, coefficients: Tensor, size: int) -> torch.utils.hooks.RemovableHandle:
    def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return args[0] * coefficients.repeat_interleave(size).to(args[0].dtype), *args[1:]

    return linear.register_forward_pre_hook(multiply)


@torch.no_grad()
def _add_penalty(coefficients: Mapping[str, nn.Parameter], penalty: float) -> None:
    """Adds the gradient of `penalty` times the sum of |c|; a path that no batch used has none of its own."""
    for one in coefficients.values():
        whole = penalty * one.sign()
        one.grad = whole if one.grad is None else one.grad + whole


def _down(site: Site) -> str:
    return next(path for path, names in linear_maps(site).items() if "down" in names)
