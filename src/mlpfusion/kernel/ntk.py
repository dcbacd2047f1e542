"""The empirical Adam and plain kernels of one block, in memory that does not grow with the number of its neurons.

The gradients of all samples would fill 16.5 GB for 872 sentences and one block of RoBERTa-base. They are rebuilt from
X, D and the weights for a slab of neurons at a time (paper, Eq. 4) instead, contracted over the slab, and summed.
`kernel/trained.py` turns them into those of factors or of the entries that a mask keeps.
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
    neuron_slab,
    rows,
    runs,
    token_sums,
    weight_gradients,
)
from mlpfusion.kernel.product import MakeContraction, PlainProduct, bytes_per_column, sign_product
from mlpfusion.kernel.trace import BlockTrace
from mlpfusion.kernel.trained import Block, dense_mlp, trained
from mlpfusion.mlp import MLP

DEFAULT_WORKSPACE = 1 << 30
# Larger slabs gain at most 5 % on a CPU and cost memory; a GPU needs them to be busy.
_CPU_COLUMNS, _GPU_COLUMNS = 49_152, 262_144
_CHUNK_COPIES = 4  # of the rows on their way into a product
_PRODUCT_BYTES = 32  # of one value on its way out


@torch.no_grad()
def adam_kernel(block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """K[i, j] = <grad f(x_i), sign grad f(x_j)> over the trained tensors of one block (paper, Eq. 3), by tensor.

    Not symmetric: raw gradient left, sign right, sign(0) = 0. The constant scales of an `MLP` are part of the chain
    rule and no parameters; those of a `FactoredMLP` are its factors, of a `MaskedMLP` its entries that are not zero.
    Gradients are in fp32 (float64 if the weights are), sums over slabs in float64. Beside `workspace_bytes` it takes a
    copy of the trace in that dtype and 16 samples^2 bytes a tensor for the result. Raises `InputError` if the trace
    does not fit the block, the activation is not element-wise, a gradient is not finite, or `workspace_bytes` is too
    small for a single neuron.
    """
    return _kernels(block, trace, [sign_product], workspace_bytes)[0]


@torch.no_grad()
def plain_kernel(block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """K[i, j] = <grad f(x_i), grad f(x_j)> over the trained tensors of one block (paper, Eq. 2); else `adam_kernel`."""
    return _kernels(block, trace, [PlainProduct], workspace_bytes)[0]


@torch.no_grad()
def adam_and_plain_kernel(
    block: Block, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE
) -> tuple[BlockKernels, BlockKernels]:
    """`adam_kernel` and `plain_kernel` from one pass over the gradients."""
    adam, plain = _kernels(block, trace, [sign_product, PlainProduct], workspace_bytes)
    return adam, plain


def neuron_slabs(
    mlp: MLP, trace: BlockTrace, workspace_bytes: int, *, column_bytes: int, fixed_bytes: int
) -> list[slice]:
    """Slabs of neurons, as equal as can be, whose gradients and signals fit the workspace.

    `column_bytes` is what one entry of the gradient needs for all samples, `fixed_bytes` what the caller needs beside.
    Raises `InputError` if a single neuron does not fit.
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
    """The kernel by each product, from one pass over the gradients."""
    mlp = dense_mlp(block)
    check_block(mlp, trace)
    sorted_trace, places = by_length(trace)
    sorted_trace = sorted_trace.to(dtype=compute_dtype(mlp))
    accumulators, parameters = [KernelAccumulator(make) for make in products], trained(block, sorted_trace)
    sizes = {"column_bytes": len(products) * bytes_per_column(trace.num_samples, sorted_trace.inputs)}
    extra_bytes = parameters.extra_values() * sorted_trace.inputs.element_size()
    sizes["fixed_bytes"] = _fixed_bytes(mlp, sorted_trace) + extra_bytes
    slabs = neuron_slabs(mlp, sorted_trace, workspace_bytes, **sizes)
    for slab in slabs:
        for gradient in weight_gradients(neuron_slab(mlp, slab), sorted_trace):
            _add(accumulators, parameters.of_slab(gradient, slab), sorted_trace)
    for gradient in parameters.rest(max_rows=slabs[0].stop):
        _add(accumulators, gradient, sorted_trace)
    if mlp.down_bias is not None:
        sums = token_sums(sorted_trace.cotangents, runs(sorted_trace, trace.num_samples))
        for accumulator in accumulators:
            accumulator.add("down_bias", sums)
    found = [accumulator.kernels(places) for accumulator in accumulators]
    return [BlockKernels({name: kernels.blocks[name] for name in block.tensors()}) for kernels in found]


def _fixed_bytes(mlp: MLP, trace: BlockTrace) -> int:
    """Bytes of the rows on their way into a product and of the values on their way out."""
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
            accumulator.add(gradient.bias, token_sums(gradient.signals, runs(trace, num_samples)))


def _rows(gradient: WeightGradient, trace: BlockTrace) -> Iterator[tuple[int, Tensor]]:
    """The gradients of all samples, in chunks of as many as fit one buffer, which each chunk fills anew."""
    num_entries = _num_entries(gradient)
    size = chunk_rows(num_entries)
    buffer = gradient.signals.new_empty(min(size, trace.num_samples), num_entries)
    shape = -1, gradient.signals.shape[1], gradient.vectors.shape[1]
    first = filled = 0
    for run in runs(trace, size):
        count = run.last - run.first
        if filled + count > size:
            yield first, _trained_entries(buffer[:filled], gradient)
            first, filled = run.first, 0
        rows(gradient, run, out=buffer[filled : filled + count].view(shape))
        filled += count
    yield first, _trained_entries(buffer[:filled], gradient)


def _trained_entries(found: Float[Tensor, "samples entries"], gradient: WeightGradient) -> Tensor:
    return found if gradient.entries is None else found[:, gradient.entries]


def _num_entries(gradient: WeightGradient) -> int:
    return gradient.signals.shape[1] * gradient.vectors.shape[1]
