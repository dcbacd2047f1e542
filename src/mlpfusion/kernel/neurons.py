"""Adam kernel of every neuron, and the kernel of a block as their sum.

The output of a block depends on its effective weights only, the weights with the scales folded in;
the scales decide how fast each tensor learns. Dividing a tensor by a positive number multiplies its
gradient by that number and leaves the sign. So with kappa_j the kernels of neuron j on the
effective weights,

    plain:  K = sum_j s1_j kappa_input_j                     + sum_j s2_j kappa_output_j + kappa_down_bias
    gated:  K = sum_j s1_j kappa_input_j + sum_j a_j kappa_up_j + sum_j b_j kappa_output_j + kappa_down_bias

exactly, for all positive diagonals. kappa_input belongs to the map before the activation (`up` and
`up_bias`, in a gated block `gate` and `gate_bias`), scaled by `input_scale` s1; kappa_output
belongs to `down`. In a plain block s2 is `output_scale`. In a gated block `output_scale` is a
product s2 = a b of two free factors: `up` and `up_bias` are the effective weights divided by a,
`down` divided by b. An `up` left alone has a = 1, b = s2: its part of the kernel does not depend on
the scales. At zero the formulas are limits: the weights grow without bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.gradient import (
    WeightGradient,
    by_length,
    check_block,
    compute_dtype,
    equal_length_groups,
    neuron_slab,
    sample_gradients,
    token_sums,
    weight_gradients,
)
from mlpfusion.kernel.ntk import DEFAULT_WORKSPACE, neuron_slabs
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP, fold, map_tensors

_SUM_NEURONS = 64  # kernels copied at once, to bound the memory of the copy; not tuned


@dataclass(frozen=True)
class NeuronKernels:
    """Adam kernels of all neurons of a block on its effective weights.

    `up_side` is that of a gated `up`, else None. `down_bias` is zero for a block without that bias.
    """

    input_side: Float[Tensor, "neurons samples samples"]
    output_side: Float[Tensor, "neurons samples samples"]
    down_bias: Float[Tensor, "samples samples"]
    up_side: Float[Tensor, "neurons samples samples"] | None = None

    @property
    def sides(self) -> list[Float[Tensor, "neurons samples samples"]]:
        """Input side, up side (gated blocks only), output side."""
        return [side for side in (self.input_side, self.up_side, self.output_side) if side is not None]

    def combine(
        self,
        input_scale: Float[Tensor, " neurons"],
        down_scale: Float[Tensor, " neurons"],
        up_scale: Float[Tensor, " neurons"] | None = None,
    ) -> Float64[Tensor, "samples samples"]:
        """Combines the kernels with the factors s1, b (s2 in a plain block) and a (default: ones)."""
        kernel = self.down_bias.double() + weighted_sum(self.input_side, input_scale)
        kernel = kernel + weighted_sum(self.output_side, down_scale)
        if self.up_side is None:
            return kernel
        return kernel + weighted_sum(self.up_side, torch.ones_like(down_scale) if up_scale is None else up_scale)


@torch.no_grad()
def neuron_kernels(mlp: MLP, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> NeuronKernels:
    """Computes the kernels of all neurons on the effective weights.

    In the dtype of the gradients, fp32 or better: the result takes neurons * samples^2 * 4 bytes a
    side, 0.4 GB for 1536 neurons and 256 samples, beside `workspace_bytes`. Use a trace of a few
    samples (`BlockTrace.select`). Raises `InputError` as `adam_kernel` does.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> neuron_kernels(mlp, trace).input_side.tolist()
    [[[6.0]]]
    """
    effective, ordered, places = _prepared(mlp, trace)
    kernels = ordered.inputs.new_empty(_num_factors(mlp), trace.num_samples, trace.num_samples)
    _fill(kernels, effective, ordered, _slabs(effective, ordered, workspace_bytes))
    for part in kernels.split(_SUM_NEURONS):
        part.copy_(part[:, places][:, :, places])
    sides = kernels.split(mlp.num_neurons)
    bias = down_bias_kernel(mlp, trace).to(kernels.dtype)
    return NeuronKernels(sides[0], sides[-1], bias, sides[1] if len(sides) == 3 else None)


@torch.no_grad()
def down_bias_kernel(mlp: MLP, trace: BlockTrace) -> Float64[Tensor, "samples samples"]:
    """Adam kernel of `down_bias`, independent of all scales. Zero without that bias.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu, down_bias=torch.zeros(1))
    >>> trace = BlockTrace(torch.ones(2, 1), torch.tensor([[2.0], [-5.0]]), torch.tensor([1, 1]))
    >>> down_bias_kernel(mlp, trace).tolist()
    [[2.0, -2.0], [-5.0, 5.0]]
    """
    dtype = compute_dtype(mlp)
    if mlp.down_bias is None:
        return trace.inputs.new_zeros(trace.num_samples, trace.num_samples, dtype=torch.float64)
    sums = token_sums(trace.cotangents.to(dtype), equal_length_groups(trace, trace.num_samples))
    return (sums @ sums.sign().T).double()


def with_scales(
    mlp: MLP,
    input_scale: Float[Tensor, " neurons"],
    down_scale: Float[Tensor, " neurons"],
    up_scale: Float[Tensor, " neurons"] | None = None,
) -> MLP:
    """Sets the scales of a block and divides its weights. The output stays.

    Its kernel is `NeuronKernels.combine` of the same three scales, up to rounding in the dtype of
    the weights. Raises `InputError` for a scale that is not positive, and for an `up_scale` of a
    block without a gate, where `input_scale` is the scale of `up`.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> scaled = with_scales(mlp, torch.tensor([2.0]), torch.tensor([4.0]))
    >>> scaled.up.item(), scaled.down.item()
    (0.5, 0.25)
    """
    scales = {"input_scale": input_scale, "down_scale": down_scale, "up_scale": up_scale}
    for name, scale in scales.items():
        if scale is not None and not bool((scale > 0).all()):
            raise InputError(f"`{name}` must be positive, got {float(scale.min())}")
    effective = _effective(mlp)
    fields = {"down": (effective.down / down_scale).to(mlp.down.dtype)} | _scaled_rows(
        effective, _input_side(mlp), 1 / input_scale
    )
    output_scale = down_scale
    if up_scale is not None:
        if mlp.gate is None:
            raise InputError("`up_scale` must be None for a block without a gate, got one")
        fields |= _scaled_rows(effective, "up", 1 / up_scale)
        output_scale = down_scale * up_scale
    return replace(effective, **fields, input_scale=input_scale, output_scale=output_scale)


def _input_side(mlp: MLP) -> str:
    return "up" if mlp.gate is None else "gate"


def _effective(mlp: MLP) -> MLP:
    """Folds the scales into the weights."""
    folded = fold(replace(mlp, input_scale=None))
    if mlp.input_scale is None:
        return folded
    return replace(folded, **_scaled_rows(folded, _input_side(mlp), mlp.input_scale))


def _scaled_rows(mlp: MLP, side: str, scale: Float[Tensor, " neurons"]) -> dict[str, Tensor]:
    """Weight and bias of `up` or `gate`, each row times its scale."""
    weight, bias = getattr(mlp, side), getattr(mlp, f"{side}_bias")
    scaled = {side: (weight * scale[:, None]).to(weight.dtype)}
    return scaled if bias is None else scaled | {f"{side}_bias": (bias * scale).to(bias.dtype)}


def _prepared(mlp: MLP, trace: BlockTrace) -> tuple[MLP, BlockTrace, Tensor]:
    check_block(mlp, trace)
    dtype = compute_dtype(mlp)
    effective = _effective(map_tensors(mlp, lambda tensor: tensor.to(dtype)))
    ordered, places = by_length(trace)
    return effective, ordered.to(dtype=dtype), places


def _num_factors(mlp: MLP) -> int:
    return (2 if mlp.gate is None else 3) * mlp.num_neurons


def _slabs(mlp: MLP, trace: BlockTrace, workspace_bytes: int) -> list[slice]:
    """Slabs of neurons for `_fill`."""
    copies = 3 + -(-trace.num_samples // mlp.hidden_size)  # runs, gradients, signs; kernels
    column_bytes = copies * trace.num_samples * trace.inputs.element_size()
    return neuron_slabs(mlp, trace, workspace_bytes, column_bytes=column_bytes, fixed_bytes=0)


def _fill(out: Float[Tensor, "factors samples samples"], mlp: MLP, trace: BlockTrace, slabs: list[slice]) -> None:
    """Writes the kernels of all neurons to `out`."""
    sides = out.split(mlp.num_neurons)
    for slab in slabs:
        for side, gradient in zip(sides, weight_gradients(neuron_slab(mlp, slab), trace), strict=True):
            gradients = torch.cat(list(_features(gradient, trace)), dim=1)
            side[slab] = gradients @ gradients.sign().transpose(1, 2)


def _features(gradient: WeightGradient, trace: BlockTrace) -> Iterator[Float[Tensor, "neurons samples features"]]:
    """Yields the gradients with one row a neuron. A bias, if any, is the last column."""
    for group in equal_length_groups(trace, trace.num_samples):
        part = sample_gradients(gradient, group)
        if gradient.bias is not None:
            part = torch.cat([part, group.of(gradient.signals).sum(1)[:, :, None]], dim=2)
        yield part.transpose(0, 1)


def weighted_sum(
    kernels: Float[Tensor, "neurons samples samples"], scale: Float[Tensor, " neurons"]
) -> Float64[Tensor, "samples samples"]:
    """Adds up the kernels times their scales, in float64."""
    parts = zip(scale.double().split(_SUM_NEURONS), kernels.split(_SUM_NEURONS), strict=True)
    return torch.stack([torch.tensordot(factors, part.double(), dims=1) for factors, part in parts]).sum(0)


def inner_products(
    kernels: Float[Tensor, "neurons samples samples"], kernel: Float64[Tensor, "samples samples"]
) -> Float64[Tensor, " neurons"]:
    """The inner product <A, B> = sum_ij A_ij B_ij of each of the kernels with `kernel`, in float64."""
    parts = kernels.split(_SUM_NEURONS)
    return torch.cat([torch.tensordot(part.double(), kernel, dims=2) for part in parts])


def squared_norms(kernels: Float[Tensor, "neurons samples samples"]) -> Float64[Tensor, " neurons"]:
    """<A, A> of each of the kernels, in float64."""
    return torch.cat([part.double().square().sum((1, 2)) for part in kernels.split(_SUM_NEURONS)])
