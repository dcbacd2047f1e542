"""The gradients of one block in closed form, for a slab of its neurons at a time (paper, Eq. 4)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from mlpfusion.errors import InputError
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP

# Tensors with one value a token and neuron that are alive at once in `weight_gradients`, those included that autograd
# keeps of an activation made of many steps.
PLAIN_SIGNALS, GATED_SIGNALS = 16, 20


@dataclass(frozen=True)
class WeightGradient:
    """The gradient of one weight block: that of sample i is `signals_i.T @ vectors_i`, over the tokens of the sample.

    `signals` has one column a neuron of the slab; their sums over tokens are the gradient of the bias `bias`, if the
    block has one. `vectors` are the inputs (`up`, `gate`) or the cotangents (`down`, with shape (neurons, hidden)).
    Where only some entries of that matrix train, `entries` are their places in it, row after row.
    """

    name: str
    signals: Float[Tensor, "tokens neurons"]
    vectors: Float[Tensor, "tokens hidden"]
    bias: str | None = None
    entries: Int[Tensor, " trained"] | None = None


@dataclass(frozen=True)
class Run:
    """Samples `first` to `last` (exclusive), all of `length` tokens, from token `start` on."""

    first: int
    last: int
    length: int
    start: int

    def of(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, "samples length width"]:
        """The tokens of these samples; a view."""
        count = self.last - self.first
        return values[self.start : self.start + count * self.length].view(count, self.length, -1)


def by_length(trace: BlockTrace) -> tuple[BlockTrace, Tensor]:
    """The trace sorted by length, and for each sample of `trace` its place there."""
    order = trace.lengths.argsort(stable=True)
    return trace.select(order), order.argsort()


def runs(trace: BlockTrace, max_samples: int) -> list[Run]:
    """Neighbouring samples of equal length, at most `max_samples` together: no padding, and no loop over samples."""
    found: list[Run] = []
    first, start = 0, 0
    values, counts = torch.unique_consecutive(trace.lengths.cpu(), return_counts=True)
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        for offset in range(0, count, max_samples):
            last = first + min(max_samples, count - offset)
            found.append(Run(first, last, length, start))
            first, start = last, start + (last - first) * length
    return found


def check_block(mlp: MLP, trace: BlockTrace) -> None:
    """Raises `InputError` if the trace does not fit the block or its activation is not element-wise."""
    if trace.hidden_size != mlp.hidden_size:
        raise InputError(f"`trace` must have hidden size {mlp.hidden_size}, got {trace.hidden_size}")
    probe = trace.inputs.new_zeros(2, 1)
    if mlp.num_neurons > 1 and mlp.activation(probe).shape != probe.shape:
        raise InputError(
            "`activation` must be element-wise, got one of a fixed width; take its scale out into `output_scale`"
        )


def compute_dtype(mlp: MLP) -> torch.dtype:
    """The dtype of the gradients: that of the weights, but fp32 at least."""
    return torch.promote_types(mlp.up.dtype, torch.float32)


def neuron_slab(mlp: MLP, slab: slice) -> MLP:
    """The block of these neurons only, in the dtype of the gradients; shares memory where nothing changes."""
    dtype = compute_dtype(mlp)
    fields = {name: tensor[slab].to(dtype) for name, tensor in mlp.tensors().items() if not name.startswith("down")}
    scales = {
        name: scale[slab].to(dtype)
        for name in ("input_scale", "output_scale")
        if (scale := getattr(mlp, name)) is not None
    }
    return replace(mlp, **fields, **scales, down=mlp.down[:, slab].to(dtype), down_bias=None)


def weight_gradients(mlp: MLP, trace: BlockTrace, *, create_graph: bool = False) -> Iterator[WeightGradient]:
    """The gradients of `gate`, `up` and `down` with their biases (paper, Eq. 4, with gate and constant scales).

    With h = act(z * s1) * s2, z the pre-activation (of the gate where there is one), and B = D down: the signal of the
    input side is B * s1 * s2 * act'(z * s1), times the up values in a gated block; the signal of a gated `up` is B * h;
    that of `down` is what multiplies its columns. `mlp` and `trace` must be in one dtype. With `create_graph` they can
    be differentiated by the tensors of `mlp`, at the price of more memory.
    """
    times = torch.mul if create_graph else Tensor.mul_
    up = linear(trace.inputs, mlp.up, mlp.up_bias)
    z = up if mlp.gate is None else linear(trace.inputs, mlp.gate, mlp.gate_bias)
    value, slope = _scaled_activation(mlp, z, create_graph=create_graph)
    back = trace.cotangents @ mlp.down
    if mlp.gate is None:
        yield WeightGradient("up", times(slope, back), trace.inputs, _named("up_bias", mlp.up_bias))
        yield WeightGradient("down", value, trace.cotangents)
        return
    signals = times(times(slope, back), up)
    yield WeightGradient("gate", signals, trace.inputs, _named("gate_bias", mlp.gate_bias))
    yield WeightGradient("up", times(back, value), trace.inputs, _named("up_bias", mlp.up_bias))
    yield WeightGradient("down", times(value, up), trace.cotangents)


def rows(
    gradient: WeightGradient, run: Run, *, out: Float[Tensor, "samples neurons hidden"] | None = None
) -> Float[Tensor, "samples neurons hidden"]:
    """The gradients of the samples of one run, in `out` if it is given."""
    return torch.bmm(run.of(gradient.signals).transpose(1, 2), run.of(gradient.vectors), out=out)


def token_sums(values: Float[Tensor, "tokens width"], trace_runs: list[Run]) -> Float[Tensor, "samples width"]:
    """The sums over the tokens of each sample: the gradients of a bias."""
    return torch.cat([run.of(values).sum(1) for run in trace_runs])


def _scaled_activation(mlp: MLP, z: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """act(z * s1) * s2 and its derivative by z, s1 * s2 * act'(z * s1)."""
    times = torch.mul if create_graph else Tensor.mul_
    inner = z if mlp.input_scale is None else z * mlp.input_scale
    value, slope = _activation_and_slope(mlp.activation, inner, create_graph=create_graph)
    if mlp.input_scale is not None:
        slope = times(slope, mlp.input_scale)
    if mlp.output_scale is not None:
        value, slope = times(value, mlp.output_scale), times(slope, mlp.output_scale)
    return value, slope


def _activation_and_slope(
    activation: Callable[[Tensor], Tensor], z: Tensor, *, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """act(z) and act'(z) by autograd; on a copy of z, for an activation that works in place."""
    leaf = z if create_graph and z.requires_grad else z.detach().requires_grad_()
    with torch.enable_grad():
        value = activation(leaf.clone())
        (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=create_graph)
    return (value, slope) if create_graph else (value.detach(), slope)


def _named(name: str, tensor: Tensor | None) -> str | None:
    return None if tensor is None else name
