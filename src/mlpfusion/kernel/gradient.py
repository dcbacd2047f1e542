"""Gradients of one block in closed form, a slab of neurons at a time (paper, Eq. 4)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from mlpfusion.errors import InputError
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.mlp import MLP

# Tensors (tokens, neurons) alive at once in `weight_gradients`, for the budget of memory: those of
# the formulas, and those that autograd keeps for an activation made of many steps.
PLAIN_SIGNALS, GATED_SIGNALS = 16, 20


@dataclass(frozen=True)
class WeightGradient:
    """Gradient of one weight matrix: for sample i, `signals_i.T @ vectors_i` over its tokens.

    `signals` has one column for each neuron of the slab; summed over tokens, they are the gradient
    of the bias `bias` (None without one). `vectors` are the inputs (`up`, `gate`) or the cotangents
    (`down`, of shape (neurons, hidden)). `entries` selects trained entries of the matrix, flattened
    row by row; None trains all.
    """

    name: str
    signals: Float[Tensor, "tokens neurons"]
    vectors: Float[Tensor, "tokens hidden"]
    bias: str | None = None
    entries: Int[Tensor, " trained"] | None = None


@dataclass(frozen=True)
class EqualLengths:
    """Samples `first` to `last` (exclusive), each of `length` tokens, from token `start` on."""

    first: int
    last: int
    length: int
    start: int

    def of(self, values: Float[Tensor, "tokens width"]) -> Float[Tensor, "samples length width"]:
        """Views the tokens of these samples, one row a sample."""
        count = self.last - self.first
        return values[self.start : self.start + count * self.length].view(count, self.length, -1)


def by_length(trace: BlockTrace) -> tuple[BlockTrace, Tensor]:
    """Sorts the trace by length. Also returns the place of each original sample.

    >>> trace = BlockTrace(torch.zeros(3, 1), torch.zeros(3, 1), torch.tensor([2, 1]))
    >>> ordered, places = by_length(trace)
    >>> ordered.lengths.tolist(), places.tolist()
    ([1, 2], [1, 0])
    """
    order = trace.lengths.argsort(stable=True)
    return trace.select(order), order.argsort()


def equal_length_groups(trace: BlockTrace, max_samples: int) -> list[EqualLengths]:
    """Groups neighbouring samples of equal length, at most `max_samples` a group.

    Neither padding nor a loop over samples is then needed.

    >>> trace = BlockTrace(torch.zeros(4, 1), torch.zeros(4, 1), torch.tensor([1, 1, 2]))
    >>> [(group.first, group.last, group.length) for group in equal_length_groups(trace, 8)]
    [(0, 2, 1), (2, 3, 2)]
    """
    groups: list[EqualLengths] = []
    first, start = 0, 0
    values, counts = torch.unique_consecutive(trace.lengths.cpu(), return_counts=True)
    for length, count in zip(values.tolist(), counts.tolist(), strict=True):
        for offset in range(0, count, max_samples):
            last = first + min(max_samples, count - offset)
            groups.append(EqualLengths(first, last, length, start))
            first, start = last, start + (last - first) * length
    return groups


def check_block(mlp: MLP, trace: BlockTrace) -> None:
    """Raises `InputError` if the trace does not fit, or the activation is not element-wise."""
    if trace.hidden_size != mlp.hidden_size:
        raise InputError(f"`trace` must have hidden size {mlp.hidden_size}, got {trace.hidden_size}")
    probe = trace.inputs.new_zeros(2, 1)
    if mlp.num_neurons > 1 and mlp.gating is None and mlp.activation(probe).shape != probe.shape:
        raise InputError(
            "`activation` must be element-wise, got one of a fixed width; take its scale out into `output_scale`"
        )


def compute_dtype(mlp: MLP) -> torch.dtype:
    """Returns the dtype of the gradients: that of the weights, but at least fp32.

    >>> compute_dtype(MLP(torch.ones(1, 2).half(), torch.ones(2, 1).half(), torch.relu))
    torch.float32
    """
    return torch.promote_types(mlp.up.dtype, torch.float32)


def neuron_slab(mlp: MLP, slab: slice) -> MLP:
    """Slices neurons out of a block, in the dtype of the gradients. Shares memory if possible.

    >>> mlp = MLP(torch.ones(4, 2), torch.ones(2, 4), torch.relu)
    >>> neuron_slab(mlp, slice(1, 3)).num_neurons
    2
    """
    dtype = compute_dtype(mlp)

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[slab].to(dtype)

    return replace(
        mlp,
        up=mlp.up[slab].to(dtype),
        up_bias=rows(mlp.up_bias),
        gate=rows(mlp.gate),
        gate_bias=rows(mlp.gate_bias),
        down=mlp.down[:, slab].to(dtype),
        down_bias=None,
        input_scale=rows(mlp.input_scale),
        output_scale=rows(mlp.output_scale),
    )


def weight_gradients(mlp: MLP, trace: BlockTrace, *, create_graph: bool = False) -> Iterator[WeightGradient]:
    """Yields the gradients of `gate`, `up` and `down` (paper, Eq. 4, with gate and scales).

    With z the pre-activation (of the gate if there is one), h = act(z * s1) * s2 and B = D down,
    the signals are

        plain block:  up    B * s1 * s2 * act'(z * s1)
                      down  h
        gated block:  gate  B * s1 * s2 * act'(z * s1) * up x
                      up    B * h
                      down  h * up x

    and with a `gating` g(gate x, up x) the derivatives of g * s2 by its two arguments, times B, and g * s2. `mlp` and
    `trace` must have one dtype. With `create_graph` the gradients can be differentiated by the tensors of `mlp`, for
    more memory.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> [(g.name, float(g.signals.T @ g.vectors)) for g in weight_gradients(mlp, trace)]
    [('up', 6.0), ('down', 6.0)]
    """
    if mlp.gating is not None:
        yield from _gating_gradients(mlp, trace, create_graph=create_graph)
        return
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


def _gating_gradients(mlp: MLP, trace: BlockTrace, *, create_graph: bool) -> Iterator[WeightGradient]:
    """As `weight_gradients` for a block with a `gating`, by autograd: a neuron depends on its own row of each map."""
    assert mlp.gating is not None
    assert mlp.gate is not None
    with torch.enable_grad():
        maps = [linear(trace.inputs, mlp.gate, mlp.gate_bias), linear(trace.inputs, mlp.up, mlp.up_bias)]
        gate, up = (one if create_graph and one.requires_grad else one.detach().requires_grad_() for one in maps)
        hidden = mlp.gating(gate, up)
        if mlp.output_scale is not None:
            hidden = hidden * mlp.output_scale
        back = trace.cotangents @ mlp.down
        signals = torch.autograd.grad(hidden, (gate, up), back, create_graph=create_graph)
    if not create_graph:
        hidden = hidden.detach()
    yield WeightGradient("gate", signals[0], trace.inputs, _named("gate_bias", mlp.gate_bias))
    yield WeightGradient("up", signals[1], trace.inputs, _named("up_bias", mlp.up_bias))
    yield WeightGradient("down", hidden, trace.cotangents)


def sample_gradients(
    gradient: WeightGradient, group: EqualLengths, *, out: Float[Tensor, "samples neurons hidden"] | None = None
) -> Float[Tensor, "samples neurons hidden"]:
    """Computes the gradients of the samples of one group, into `out` if given.

    >>> trace = BlockTrace(torch.ones(2, 1), torch.ones(2, 1), torch.tensor([2]))
    >>> gradient = WeightGradient("up", torch.tensor([[1.0], [2.0]]), trace.inputs)
    >>> sample_gradients(gradient, equal_length_groups(trace, 8)[0]).tolist()
    [[[3.0]]]
    """
    return torch.bmm(group.of(gradient.signals).transpose(1, 2), group.of(gradient.vectors), out=out)


def token_sums(values: Float[Tensor, "tokens width"], groups: list[EqualLengths]) -> Float[Tensor, "samples width"]:
    """Sums over the tokens of each sample: the gradients of a bias.

    >>> trace = BlockTrace(torch.ones(3, 1), torch.ones(3, 1), torch.tensor([2, 1]))
    >>> token_sums(trace.inputs, equal_length_groups(trace, 8)).tolist()
    [[2.0], [1.0]]
    """
    return torch.cat([group.of(values).sum(1) for group in groups])


def _scaled_activation(mlp: MLP, z: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Computes act(z * s1) * s2 and the derivative by z, s1 * s2 * act'(z * s1)."""
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
    """Computes act(z) and act'(z) by autograd, on a copy of z: activations may work in place."""
    leaf = z if create_graph and z.requires_grad else z.detach().requires_grad_()
    with torch.enable_grad():
        value = activation(leaf.clone())
        (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value), create_graph=create_graph)
    return (value, slope) if create_graph else (value.detach(), slope)


def _named(name: str, tensor: Tensor | None) -> str | None:
    return None if tensor is None else name
