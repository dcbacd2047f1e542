"""Empirical Adam and plain kernels of one block, in memory independent of the number of neurons.

The gradients of all samples would fill 16.5 GB for 872 sentences and one block of RoBERTa-base.
Instead they are rebuilt from X, D and the weights for a slab of neurons at a time (paper, Eq. 4),
contracted over the slab, and summed. `kernel/trained.py` turns them into gradients of factors or of
unmasked entries.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import MAX_CHUNK, BlockKernels, KernelAccumulator, add_rows, chunk_rows
from mlpfusion.kernel.gradient import (
    GATED_SIGNALS,
    PLAIN_SIGNALS,
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
from mlpfusion.kernel.product import MakeContraction, PlainProduct, bytes_per_column, sign_product
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.kernel.trained import Block, dense_mlp, trained_parameters
from mlpfusion.mlp import MLP

DEFAULT_WORKSPACE = 1 << 30  # both kernels of 872 sentences in slabs of `_CPU_COLUMNS` take 0.9 GB
# Columns of a slab. Larger slabs gain at most 5 % on a CPU and cost memory; a GPU needs them to be
# busy.
_CPU_COLUMNS, _GPU_COLUMNS = 49_152, 262_144
_CHUNK_COPIES = 4  # of the rows on the way into a product
_PRODUCT_BYTES = 32  # of one value on the way out


@torch.no_grad()
def adam_kernel(block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """Computes K[i, j] = <grad f(x_i), sign grad f(x_j)> for each trained tensor (paper, Eq. 3).

    Not symmetric: raw gradient left, sign right, sign(0) = 0. The constant scales of an `MLP` enter
    the chain rule and are no parameters. A `FactoredMLP` trains its factors, a `MaskedMLP` its
    non-zero entries. Gradients are in fp32 (float64 for float64 weights), sums over slabs in
    float64. Memory: `workspace_bytes`, a copy of the trace in that dtype, and 16 samples^2 bytes
    for each tensor of the result. Raises `InputError` if the trace does not fit the block, the
    activation is not element-wise, a gradient is not finite, or `workspace_bytes` is too small for
    a single neuron.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> {name: kernel.item() for name, kernel in adam_kernel(mlp, trace).blocks.items()}
    {'up': 6.0, 'down': 6.0}
    """
    return _kernels(block, trace, [sign_product], workspace_bytes)[0]


@torch.no_grad()
def plain_kernel(block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """Computes K[i, j] = <grad f(x_i), grad f(x_j)> (paper, Eq. 2). Otherwise as `adam_kernel`.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> plain_kernel(mlp, trace).total.item()
    72.0
    """
    return _kernels(block, trace, [PlainProduct], workspace_bytes)[0]


@torch.no_grad()
def adam_and_plain_kernel(
    block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE
) -> tuple[BlockKernels, BlockKernels]:
    """Computes `adam_kernel` and `plain_kernel` in one pass over the gradients.

    >>> mlp = MLP(torch.ones(1, 1), torch.ones(1, 1), torch.relu)
    >>> trace = BlockTrace(torch.tensor([[3.0]]), torch.tensor([[2.0]]), torch.tensor([1]))
    >>> [kernel.total.item() for kernel in adam_and_plain_kernel(mlp, trace)]
    [12.0, 72.0]
    """
    adam, plain = _kernels(block, trace, [sign_product, PlainProduct], workspace_bytes)
    return adam, plain


def neuron_slabs(
    mlp: MLP, trace: BlockTrace, workspace_bytes: int, *, column_bytes: int, fixed_bytes: int
) -> list[slice]:
    """Splits the neurons into nearly equal slabs within the workspace.

    `column_bytes` is the need of one gradient entry for all samples, `fixed_bytes` the caller's
    other need. Raises `InputError` if a single neuron does not fit.

    >>> mlp = MLP(torch.ones(4, 1), torch.ones(1, 4), torch.relu)
    >>> trace = BlockTrace(torch.ones(1, 1), torch.ones(1, 1), torch.tensor([1]))
    >>> neuron_slabs(mlp, trace, 200, column_bytes=8, fixed_bytes=0)
    [slice(0, 2, None), slice(2, 4, None)]
    """
    like, hidden_size = trace.inputs, mlp.hidden_size
    signals = (PLAIN_SIGNALS if mlp.gate is None else GATED_SIGNALS) * trace.num_tokens
    per_neuron = hidden_size * column_bytes + signals * like.element_size()
    least = fixed_bytes + per_neuron
    if workspace_bytes < least:
        raise InputError(f"`workspace_bytes` must be at least {least}, got {workspace_bytes}")
    columns = _GPU_COLUMNS if like.is_cuda else _CPU_COLUMNS
    most = min((workspace_bytes - fixed_bytes) // per_neuron, max(1, columns // mlp.hidden_size))
    size = -(-mlp.num_neurons // -(-mlp.num_neurons // most))
    return [slice(start, min(start + size, mlp.num_neurons)) for start in range(0, mlp.num_neurons, size)]


def _kernels(
    block: Block, trace: BlockTrace, products: Sequence[MakeContraction], workspace_bytes: int
) -> list[BlockKernels]:
    """Computes the kernel by each product, from one pass over the gradients."""
    mlp = dense_mlp(block)
    check_block(mlp, trace)
    sorted_trace, places = by_length(trace)
    sorted_trace = sorted_trace.to(dtype=compute_dtype(mlp))
    accumulators, parameters = [KernelAccumulator(make) for make in products], trained_parameters(block, sorted_trace)
    column_bytes = len(products) * bytes_per_column(trace.num_samples, sorted_trace.inputs)
    extra_bytes = parameters.extra_values() * sorted_trace.inputs.element_size()
    fixed_bytes = _fixed_bytes(mlp, sorted_trace) + extra_bytes
    slabs = neuron_slabs(mlp, sorted_trace, workspace_bytes, column_bytes=column_bytes, fixed_bytes=fixed_bytes)
    for slab in slabs:
        for gradient in weight_gradients(neuron_slab(mlp, slab), sorted_trace):
            _add(accumulators, parameters.of_slab(gradient, slab), sorted_trace)
    for gradient in parameters.rest(max_rows=slabs[0].stop):
        _add(accumulators, gradient, sorted_trace)
    if mlp.down_bias is not None:
        sums = token_sums(sorted_trace.cotangents, equal_length_groups(sorted_trace, trace.num_samples))
        for accumulator in accumulators:
            accumulator.add("down_bias", sums)
    results = [accumulator.kernels(places) for accumulator in accumulators]
    return [BlockKernels({name: kernels.blocks[name] for name in block.tensors()}) for kernels in results]


def _fixed_bytes(mlp: MLP, trace: BlockTrace) -> int:
    """Bytes of the rows on the way into a product and of the values on the way out."""
    rows_in = min(max(MAX_CHUNK, mlp.hidden_size), trace.num_samples * mlp.hidden_size * mlp.num_neurons)
    return _CHUNK_COPIES * rows_in * trace.inputs.element_size() + _PRODUCT_BYTES * trace.num_samples**2


def _add(accumulators: Sequence[KernelAccumulator], gradient: WeightGradient, trace: BlockTrace) -> None:
    like, num_samples = gradient.signals, trace.num_samples
    num_columns = _num_entries(gradient) if gradient.entries is None else len(gradient.entries)
    if num_columns:
        add_rows(accumulators, gradient.name, num_samples, num_columns, like, _rows(gradient, trace))
    for accumulator in accumulators:
        if not num_columns:  # a mask that keeps nothing here; the kernel is zero, not absent
            accumulator.add(gradient.name, like.new_zeros(num_samples, 1))
        if gradient.bias is not None:
            accumulator.add(gradient.bias, token_sums(gradient.signals, equal_length_groups(trace, num_samples)))


def _rows(gradient: WeightGradient, trace: BlockTrace) -> Iterator[tuple[int, Tensor]]:
    """Yields the gradients of all samples in chunks, all in one buffer."""
    num_entries = _num_entries(gradient)
    size = chunk_rows(num_entries)
    buffer = gradient.signals.new_empty(min(size, trace.num_samples), num_entries)
    shape = -1, gradient.signals.shape[1], gradient.vectors.shape[1]
    first = filled = 0
    for group in equal_length_groups(trace, size):
        count = group.last - group.first
        if filled + count > size:
            yield first, _trained_entries(buffer[:filled], gradient)
            first, filled = group.first, 0
        sample_gradients(gradient, group, out=buffer[filled : filled + count].view(shape))
        filled += count
    yield first, _trained_entries(buffer[:filled], gradient)


def _trained_entries(rows: Float[Tensor, "samples entries"], gradient: WeightGradient) -> Tensor:
    return rows if gradient.entries is None else rows[:, gradient.entries]


def _num_entries(gradient: WeightGradient) -> int:
    return gradient.signals.shape[1] * gradient.vectors.shape[1]
