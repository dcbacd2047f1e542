"""NTKMatch: first the best output, then two diagonals for the kernel (ours; not in the paper)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.checks import check_above_zero, check_fields, check_range
from mlpfusion.errors import shown
from mlpfusion.kernel import BlockTrace, adam_kernel
from mlpfusion.kernel.matching import Matching, match_kernel
from mlpfusion.kernel.scalar import check_pooling
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block, CalibrationNeeds, SecondStep
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.refit import (
    Moments,
    Refinement,
    moments,
    output_error,
    refine_weights,
    refit_down,
    refit_part,
    split_samples,
)
from mlpfusion.methods.calibrated.student import fused_start
from mlpfusion.mlp import MLP, in_compute_dtype, select_neurons

CHOICES = ("energy", "cholesky", "fusion")
_JUDGED_TOKENS = 4096  # that the errors in the metrics are of, if nothing is refined: they decide nothing


@dataclass(frozen=True)
class NTKMatch:
    """Selects neurons, refines the weights, then matches the Adam kernel by two scales.

    Each part can be left out. `choice` is `energy` (neurons that add most to the output: mean
    squared activation times |down_i|^2), `cholesky` (pivots of the Gram matrix of the
    contributions) or `fusion` (centroids and P of MLP Fusion). `refit` solves for `down` and its
    bias by ridge regression. `ridge` is the strength of the regression, in units of the mean
    squared activation. `refine_epochs` epochs of Adam on all weights follow, but at most
    512 steps of 512 tokens. `refine_rate` is the learning rate of the refinement, in units of the
    root mean square of each matrix. `match` sets
    the scales for the original's Adam kernel: a scale for each `neuron`, one for each `layer`, or
    `none`. `match_ridge` pulls the scales of the neurons towards the scale of the layer.
    `match_samples` samples are used for the match.

    `pooling` names the tokens read by the head of the task: the `mean` of the last hidden states,
    the `first` token (BERT's and RoBERTa's classifiers) or the `last` (a decoder's). Choice, refit
    and refinement then weight the tokens by the gradients of such a head (`token_weights`): in the
    last layer few tokens matter. The scales are always matched to the kernel of heads on the mean.

    >>> NTKMatch(pooling="first").match
    'neuron'
    """

    choice: str = "energy"  # after refit and refinement the choices differ little (decision 006)
    refit: bool = True
    ridge: float = 0.01  # not tuned
    refine_epochs: int = 20  # not tuned; more steps gain 2 to 3 % (LOG, 2026-11-20)
    refine_rate: float = 0.04  # not tuned
    match: str = "neuron"
    match_ridge: float = 0.3  # 0.1 gives the same kernel error, within 1 %
    match_samples: int = 128  # 256 lower the kernel error by 2 % for 30 % more time
    pooling: str = "mean"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.choice not in CHOICES:
            raise ValueError(f"`choice` must be one of {', '.join(CHOICES)}, got {shown(self.choice)}")
        check_above_zero("ridge", self.ridge)
        check_range("refine_epochs", self.refine_epochs, 0)
        check_above_zero("refine_rate", self.refine_rate)
        if self.match not in ("neuron", "layer", "none"):
            raise ValueError(f"`match` must be one of neuron, layer, none, got {shown(self.match)}")
        check_above_zero("match_ridge", self.match_ridge)
        check_range("match_samples", self.match_samples, 1)
        check_pooling(self.pooling)

    def needs(self) -> CalibrationNeeds:
        """Needs of the calibration: the pooling, and gradients only for the match."""
        return CalibrationNeeds(self.pooling, gradients=self.match != "none")

    def refinement(self) -> Refinement:
        """Options of the refinement."""
        return Refinement(self.refine_epochs, self.refine_rate)


def compress(block: Block, config: NTKMatch) -> Narrowed:
    """Builds the block up to its scales (see `rescale`). The metrics are output errors.

    The errors are on held-out samples if the weights are refined. Errors and fits weight the tokens
    as the calibration does.
    """
    mlp, fit = block.mlp, block.inputs
    if config.refine_epochs:
        fit, held_out = split_samples(fit, block.generator)
    else:
        held_out = _some(fit)
    held_out = held_out.with_targets(mlp)
    small, refitted = _chosen_and_refitted(mlp, block.num_neurons, config, block.generator, fit)
    metrics = {"output_error_chosen": output_error(small, held_out)}
    if refitted is not None:
        small = refitted
        metrics["output_error_refit"] = output_error(small, held_out)
    if config.refine_epochs:
        small = refine_weights(small, fit.with_targets(mlp), held_out, config.refinement(), block.generator)
        metrics["output_error_refined"] = output_error(small, held_out)
    return Narrowed(small, metrics)


def _some(calibration: Calibration) -> Calibration:
    """Samples of some thousand tokens, or all, to judge by."""
    num_samples, num_tokens = calibration.trace.num_samples, calibration.trace.num_tokens
    return calibration.select(_some_samples(num_samples, -(-_JUDGED_TOKENS * num_samples // max(1, num_tokens))))


def second_step(config: NTKMatch) -> SecondStep | None:
    """Returns `rescale` with this config, or None if the scales stay 1."""
    if config.match == "none":
        return None

    def step(original: MLP, before: BlockTrace, narrowed: Narrowed, after: BlockTrace) -> Narrowed:
        return rescale(original, before, narrowed, after, config)

    return step


def scales(config: NTKMatch) -> str:
    """Name of the constants of the finished blocks: two diagonals; without a match those of the chosen neurons."""
    if config.match != "none":
        return "matched"
    return "cluster-sizes" if config.choice == "fusion" else "none"


def rescale(original: MLP, before: BlockTrace, narrowed: Narrowed, after: BlockTrace, config: NTKMatch) -> Narrowed:
    """Matches the scales of `narrowed` to the original's Adam kernel.

    `before` and `after` are traces of the same samples, in the original and in the compressed
    model: compression changes the gradients too. For a block by itself the two traces are the same.
    """
    samples = _some_samples(before.num_samples, config.match_samples)
    target = adam_kernel(original, before.select(samples))
    matching = Matching(config.match, config.match_ridge)
    matched = match_kernel(narrowed.mlp, after.select(samples), target, matching)
    assert matched.input_scale is not None
    assert matched.output_scale is not None
    scales = {"input": matched.input_scale, "output": matched.output_scale}
    means = {f"mean_{name}_scale": float(scale.double().mean()) for name, scale in scales.items()}
    return replace(narrowed, mlp=matched, metrics=narrowed.metrics | means)


def _some_samples(num_samples: int, number: int) -> Int[Tensor, " selected"]:
    """Picks `number` samples, or all, the same ones every time.

    At random: batches may come sorted by length, and the scalars of a calibration take turns (`alternating_logit`), so
    that of every fourth sample one scalar would be matched.
    """
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    return order[:number].sort().values


def _chosen_and_refitted(
    mlp: MLP, num_neurons: int, config: NTKMatch, generator: torch.Generator, fit: Calibration
) -> tuple[MLP, MLP | None]:
    """The block of the chosen neurons (or centroids), and the same refitted if asked."""
    inputs, ridge = fit.trace.inputs, config.ridge
    if config.choice == "fusion":
        small = fused_start(mlp, num_neurons, generator).student
        return small, refit_down(small, inputs, fit.targets_of(mlp), ridge, fit.weights) if config.refit else None
    found = moments(mlp, inputs, fit.weights, fit.targets)
    if config.choice == "energy":
        best = by_energy(mlp, found)[:num_neurons]
    else:
        down = in_compute_dtype(mlp).down
        best = _pivots(found.gram[: mlp.num_neurons, : mlp.num_neurons] * (down.T @ down).double(), num_neurons)
    best = best.sort().values
    return select_neurons(mlp, best), refit_part(mlp, best, found, ridge) if config.refit else None


def by_energy(mlp: MLP, found: Moments) -> Int[Tensor, " neurons"]:
    """Sorts the neurons by the energy added to the (weighted) output. Ties go to the lower index.

    Energy of neuron i: mean over tokens of a_i^2, times |down_i|^2.

    >>> mlp = MLP(torch.eye(2), torch.diag(torch.tensor([1.0, 3.0])), torch.relu)
    >>> by_energy(mlp, moments(mlp, torch.ones(4, 2))).tolist()
    [1, 0]
    """
    mean_squares = found.gram.diagonal()[: mlp.num_neurons]
    return (mean_squares * mlp.down.double().square().sum(0)).sort(descending=True, stable=True).indices


def _pivots(gram: Float[Tensor, "neurons neurons"], count: int) -> Int[Tensor, " count"]:
    """First pivots of the pivoted Cholesky factorisation. Ties and zeros go to the lower index."""
    residual, columns, pivots = gram.diagonal().clone(), gram.new_zeros(count, len(gram)), []
    for step in range(count):
        pivot = int(residual.argmax())
        pivots.append(pivot)
        root = residual[pivot].clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
        columns[step] = (gram[pivot] - columns[:step, pivot] @ columns[:step]) / root
        residual = (residual - columns[step].square()).clamp_min(0)
        residual[pivots] = -1.0  # below every other residual, so that no pivot comes twice
    return torch.tensor(pivots, device=gram.device)
