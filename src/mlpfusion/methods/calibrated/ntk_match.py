"""NTKMatch: the best output first, then the two diagonals for the kernel (ours; not in the paper)."""

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
    Refinement,
    activation_chunks,
    output_error,
    refine,
    refit_down,
    split_samples,
)
from mlpfusion.methods.calibrated.student import fused_start
from mlpfusion.mlp import MLP, in_compute_dtype, select_neurons

CHOICES = ("energy", "cholesky", "fusion")


@dataclass(frozen=True)
class NTKMatch:
    """Neurons or clusters, a refit of the second map, a refinement of all weights, and matched diagonals.

    `choice` is `energy` (the neurons that add most to the output: mean squared activation times squared length of the
    column of `down`), `cholesky` (pivoted Cholesky on their contributions' Gram matrix) or `fusion` (the centroids of
    MLP Fusion and P). `refit` solves for `down` and its bias by ridge regression with `ridge` in units of the mean
    squared activation; `refine_epochs` of Adam on all weights follow, at `refine_rate` of the size of each matrix.
    `match` sets the diagonals for the Adam kernel of the original on `match_samples` samples: a number for
    each `neuron`, drawn by `match_ridge` to that of the `layer`, or that one, or `none`. Each part can be left out.
    With `data_free` the inputs are drawn from the statistics of the normalisation before the block.

    `pooling` is what the head of the task will read: the `mean` of the last hidden states, or that of the `first` token
    (BERT's and RoBERTa's head for classification) or of the `last` (a decoder's). Choice, refit and refinement then
    weigh the tokens by `token_weights`, by the gradients of such a head: in the last layer few tokens matter. The
    diagonals are always matched to the kernel of heads on the mean.
    """

    choice: str = "energy"
    refit: bool = True
    ridge: float = 0.01
    refine_epochs: int = 20
    refine_rate: float = 0.04
    match: str = "neuron"
    match_ridge: float = 0.3
    match_samples: int = 128
    data_free: bool = False
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
        if self.data_free and self.pooling != "mean":
            raise ValueError(f"`pooling` must be mean with `data_free`, which knows no position, got {self.pooling!r}")

    def needs(self) -> CalibrationNeeds:
        """What the method is calibrated on."""
        return CalibrationNeeds(not self.data_free, self.pooling)

    def refinement(self) -> Refinement:
        """The options of the refinement."""
        return Refinement(self.refine_epochs, self.refine_rate)


def compress(block: Block, config: NTKMatch) -> Narrowed:
    """The block before its diagonals are matched (`rescale`); the metrics are output errors, held-out where refined.

    All of them, and the fits, weigh the tokens as the calibration does.
    """
    calibration = block.inputs
    used, held = split_samples(calibration, block.generator) if config.refine_epochs else (calibration, calibration)
    small = _choose(block.mlp, block.num_neurons, config, block.generator, used)
    metrics = {"output_error_chosen": output_error(small, held)}
    if config.refit:
        small = refit_down(small, used.trace.inputs, used.targets, config.ridge, used.weights)
        metrics["output_error_refit"] = output_error(small, held)
    if config.refine_epochs:
        small = refine(small, used, held, config.refinement(), block.generator)
        metrics["output_error_refined"] = output_error(small, held)
    return Narrowed(small, metrics)


def second_step(config: NTKMatch) -> SecondStep | None:
    """Matches the diagonals (`rescale`); None where they are to stay 1."""
    if config.match == "none":
        return None

    def step(original: MLP, before: BlockTrace, narrowed: Narrowed, after: BlockTrace) -> Narrowed:
        return rescale(original, before, narrowed, after, config)

    return step


def rescale(original: MLP, before: BlockTrace, narrowed: Narrowed, after: BlockTrace, config: NTKMatch) -> Narrowed:
    """`narrowed` with matched diagonals: its Adam kernel on `after` is drawn to that of `original` on `before`.

    The two are the traces of the same samples in the original model and in the compressed one, whose gradients have
    changed with it; of a block by itself they are one and the same.
    """
    samples = _spread(before.num_samples, config.match_samples)
    target = adam_kernel(original, before.select(samples))
    matching = Matching(config.match, config.match_ridge)
    matched = match_kernel(narrowed.mlp, after.select(samples), target, matching)
    assert matched.input_scale is not None
    assert matched.output_scale is not None
    scales = {"input": matched.input_scale, "output": matched.output_scale}
    means = {f"mean_{name}_scale": float(scale.double().mean()) for name, scale in scales.items()}
    return replace(narrowed, mlp=matched, metrics=narrowed.metrics | means)


def _spread(num_samples: int, wanted: int) -> Int[Tensor, " chosen"]:
    """As many samples as wanted, if there are so many, at equal distances: batches may come in order of length."""
    count = min(wanted, num_samples)
    return torch.arange(count) * num_samples // count


def _choose(mlp: MLP, num_neurons: int, config: NTKMatch, generator: torch.Generator, calibration: Calibration) -> MLP:
    if config.choice == "fusion":
        return fused_start(mlp, num_neurons, generator).student
    if config.choice == "energy":
        best = by_energy(mlp, calibration.trace.inputs, calibration.weights)[:num_neurons]
    else:
        best = _pivots(_contributions(mlp, calibration), num_neurons)
    return select_neurons(mlp, best.sort().values)


def by_energy(
    mlp: MLP, inputs: Float[Tensor, "tokens hidden"], weights: Float[Tensor, " tokens"] | None = None
) -> Int[Tensor, " neurons"]:
    """The neurons, first those that add most to the (weighed) output at `inputs`; ties go to the lower index."""
    total = torch.zeros(mlp.num_neurons, dtype=torch.float64, device=mlp.up.device)
    for activations in activation_chunks(mlp, inputs, weights):
        total += activations.double().square().sum(0)
    energy = total / len(inputs) * mlp.down.double().square().sum(0)
    return energy.sort(descending=True, stable=True).indices


def _contributions(mlp: MLP, calibration: Calibration) -> Float[Tensor, "neurons neurons"]:
    """The Gram matrix of what the neurons add to the output, <a_i, a_j> <w2_i, w2_j>, a (weighed) mean over tokens."""
    gram = torch.zeros(mlp.num_neurons, mlp.num_neurons, dtype=torch.float64, device=mlp.up.device)
    inputs = calibration.trace.inputs
    for activations in activation_chunks(mlp, inputs, calibration.weights):
        gram += (activations.T @ activations).double() / len(inputs)
    down = in_compute_dtype(mlp).down
    return gram * (down.T @ down).double()


def _pivots(gram: Float[Tensor, "neurons neurons"], count: int) -> Int[Tensor, " count"]:
    """The first pivots of the pivoted Cholesky factorisation; ties, and a rest of zeros, go to the lower index."""
    residual, columns, pivots = gram.diagonal().clone(), gram.new_zeros(count, len(gram)), []
    for step in range(count):
        pivot = int(residual.argmax())
        pivots.append(pivot)
        root = residual[pivot].clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
        columns[step] = (gram[pivot] - columns[:step, pivot] @ columns[:step]) / root
        residual = (residual - columns[step].square()).clamp_min(0)
        residual[pivots] = -1.0
    return torch.tensor(pivots, device=gram.device)
