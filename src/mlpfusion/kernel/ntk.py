"""The empirical Adam and plain kernels of one block, in memory that does not grow with the number of its neurons.

The gradients of all samples would fill 16.5 GB for 872 sentences and one block of RoBERTa-base. They are rebuilt from
X, D and the weights for a slab of neurons at a time (paper, Eq. 4) instead, contracted over the slab, and summed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel.accumulate import MAX_CHUNK, BlockKernels, KernelAccumulator, chunk_rows
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
from mlpfusion.mlp import MLP

DEFAULT_WORKSPACE = 1 << 30
# Larger slabs gain nothing on a CPU (see benchmarks/ntk.py); on a GPU they fill it better.
_CPU_COLUMNS, _GPU_COLUMNS = 32_768, 262_144
_CHUNK_COPIES = 4  # of the rows on their way into a product
_PRODUCT_BYTES = 32  # of one value on its way out


@torch.no_grad()
def adam_kernel(mlp: MLP, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """K[i, j] = <grad f(x_i), sign grad f(x_j)> over the trained tensors of one block (paper, Eq. 3), by tensor.

    Not symmetric: raw gradient left, sign right, sign(0) = 0. The constant scales of `mlp` are part of the chain rule
    and no parameters. Gradients are in fp32 (float64 if the weights are), sums over slabs in float64. Beside
    `workspace_bytes` it takes a copy of the trace in that dtype and 16 samples^2 bytes a tensor for the result. Raises
    `InputError` if the trace does not fit the block, the activation is not element-wise, a gradient is not finite, or
    `workspace_bytes` is too small for a single neuron.
    """
    return _kernel(mlp, trace, sign_product, workspace_bytes)


@torch.no_grad()
def plain_kernel(mlp: MLP, trace: BlockTrace, *, workspace_bytes: int = DEFAULT_WORKSPACE) -> BlockKernels:
    """K[i, j] = <grad f(x_i), grad f(x_j)> over the trained tensors of one block (paper, Eq. 2); else `adam_kernel`."""
    return _kernel(mlp, trace, PlainProduct, workspace_bytes)


def neuron_slabs(mlp: MLP, trace: BlockTrace, workspace_bytes: int, copies: int = 0) -> list[slice]:
    """Slabs of neurons, as equal as can be, whose gradients and signals fit the workspace.

    `copies` is how often the gradients of a slab stand in memory, 0 for the buffers of a product instead. Raises
    `InputError` if a single neuron does not fit.
    """
    like, hidden_size, num_samples = trace.inputs, mlp.hidden_size, trace.num_samples
    signals = (PLAIN_SIGNALS if mlp.gate is None else GATED_SIGNALS) * trace.num_tokens
    column = copies * num_samples * like.element_size() or bytes_per_column(num_samples, like)
    per_neuron = hidden_size * column + (signals + _CHUNK_COPIES * hidden_size) * like.element_size()
    chunk = min(MAX_CHUNK, num_samples * hidden_size * mlp.num_neurons)
    fixed = _CHUNK_COPIES * chunk * like.element_size() + _PRODUCT_BYTES * num_samples**2
    if workspace_bytes < fixed + per_neuron:
        raise InputError(f"`workspace_bytes` must be at least {fixed + per_neuron}, got {workspace_bytes}")
    columns = _GPU_COLUMNS if like.is_cuda else _CPU_COLUMNS
    most = min((workspace_bytes - fixed) // per_neuron, max(1, columns // mlp.hidden_size))
    size = -(-mlp.num_neurons // -(-mlp.num_neurons // most))
    return [slice(start, min(start + size, mlp.num_neurons)) for start in range(0, mlp.num_neurons, size)]


def _kernel(mlp: MLP, trace: BlockTrace, make: MakeContraction, workspace_bytes: int) -> BlockKernels:
    check_block(mlp, trace)
    sorted_trace, places = by_length(trace)
    sorted_trace = sorted_trace.to(dtype=compute_dtype(mlp))
    accumulator = KernelAccumulator(make)
    for slab in neuron_slabs(mlp, sorted_trace, workspace_bytes):
        for gradient in weight_gradients(neuron_slab(mlp, slab), sorted_trace):
            _add(accumulator, gradient, sorted_trace)
    if mlp.down_bias is not None:
        accumulator.add("down_bias", token_sums(sorted_trace.cotangents, runs(sorted_trace, trace.num_samples)))
    kernels = accumulator.kernels(places)
    return BlockKernels({name: kernels.blocks[name] for name in mlp.tensors()})


def _add(accumulator: KernelAccumulator, gradient: WeightGradient, trace: BlockTrace) -> None:
    num_columns = gradient.signals.shape[1] * trace.hidden_size
    accumulator.add_rows(gradient.name, trace.num_samples, num_columns, gradient.signals, _rows(gradient, trace))
    if gradient.bias is not None:
        accumulator.add(gradient.bias, token_sums(gradient.signals, runs(trace, trace.num_samples)))


def _rows(gradient: WeightGradient, trace: BlockTrace) -> Iterator[tuple[int, Tensor]]:
    num_columns = gradient.signals.shape[1] * trace.hidden_size
    for run in runs(trace, chunk_rows(num_columns)):
        yield run.first, rows(gradient, run).flatten(1)
