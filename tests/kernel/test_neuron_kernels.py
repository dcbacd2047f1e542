"""The kernel of a block is linear in its diagonals, exactly."""

import functools
from dataclasses import replace

import pytest
import torch
from blocks import narrow
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mlp import make_mlp
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel import (
    BlockTrace,
    adam_kernel,
    neuron_kernels,
    ntk,
    with_scales,
)
from mlpfusion.kernel.neurons import inner_products, squared_norms, weighted_sum
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, forward

assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
any_seed = given(seed=st.integers(0, 10**6))
few = settings(max_examples=5, deadline=None)
every_block = pytest.mark.parametrize(("gated", "biased"), [(g, b) for g in (False, True) for b in (False, True)])


def make_trace(seed: int, hidden_size: int) -> BlockTrace:
    generator = torch.Generator().manual_seed(seed + 1)
    x, cotangents = torch.randn(2, 12, hidden_size, generator=generator, dtype=torch.float64)
    return BlockTrace(x, cotangents, torch.tensor([3, 1, 4, 3, 1]))


def draw_scales(seed: int, mlp: MLP) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 2)
    return torch.rand(3, mlp.num_neurons, generator=generator, dtype=torch.float64) * 3 + 0.1


@every_block
@few
@any_seed
def test_the_kernel_is_linear_in_the_diagonals(gated, biased, seed):
    mlp = make_mlp(gated=gated, biased=biased, seed=seed)
    trace = make_trace(seed, mlp.hidden_size)
    kernels = neuron_kernels(mlp, trace)
    s1, down_scale, up_scale = draw_scales(seed, mlp)
    block = with_scales(mlp, s1, down_scale)
    assert_equal(forward(block, trace.inputs), forward(mlp, trace.inputs))
    found = adam_kernel(block, trace)
    assert_equal(kernels.combine(s1, down_scale), found.total)
    side = "gate" if gated else "up"
    bias = found.blocks.get(f"{side}_bias", torch.zeros(5, 5, dtype=torch.float64))
    assert_equal(torch.tensordot(s1, kernels.input_side, dims=1), found.blocks[side] + bias)
    assert_equal(torch.tensordot(down_scale, kernels.output_side, dims=1), found.blocks["down"])
    if gated:
        block = with_scales(mlp, s1, down_scale, up_scale)
        assert_equal(forward(block, trace.inputs), forward(mlp, trace.inputs))
        assert_equal(kernels.combine(s1, down_scale, up_scale), adam_kernel(block, trace).total)


@every_block
@few
@any_seed
def test_the_kernels_are_those_of_the_effective_weights(gated, biased, seed):
    mlp = make_mlp(gated=gated, biased=biased, seed=seed)
    s1, s2, _ = draw_scales(seed, mlp)
    scaled = replace(mlp, input_scale=s1, output_scale=s2)
    trace = make_trace(seed, mlp.hidden_size)
    assert_equal(neuron_kernels(scaled, trace).combine(s1, s2), adam_kernel(scaled, trace).total)
    ones = torch.ones_like(s1)
    effective = with_scales(scaled, ones, ones)
    assert_equal(forward(effective, trace.inputs), forward(scaled, trace.inputs))
    assert_equal(neuron_kernels(scaled, trace).combine(ones, ones), adam_kernel(effective, trace).total)


def test_cluster_sizes_as_the_diagonal_give_the_kernel_of_mlp_fusion():
    mlp = make_mlp(20)
    trace = make_trace(0, mlp.hidden_size)
    fused = narrow(mlp, 6, fusion.Fusion(), torch.Generator().manual_seed(0)).mlp
    assert fused.output_scale is not None
    ones = torch.ones(6, dtype=torch.float64)
    assert_equal(neuron_kernels(fused, trace).combine(ones, fused.output_scale), adam_kernel(fused, trace).total)


@every_block
def test_the_kernels_are_the_same_whatever_the_workspace(gated, biased, monkeypatch):
    mlp = make_mlp(gated=gated, biased=biased)
    trace = make_trace(0, mlp.hidden_size)
    wanted = neuron_kernels(mlp, trace)
    monkeypatch.setattr(ntk, "_CPU_COLUMNS", 5 * mlp.hidden_size)
    for side, other in zip(neuron_kernels(mlp, trace, workspace_bytes=30_000).sides, wanted.sides, strict=True):
        assert_equal(side, other)


@pytest.mark.parametrize("number", [3, 64, 150])
def test_sums_and_products_of_kernels_are_those_of_one_stack(number):
    generator = torch.Generator().manual_seed(number)
    kernels, kernel = (torch.randn(n, 4, 4, generator=generator) for n in (number, 1))
    scale = torch.rand(number, generator=generator)
    assert_equal(weighted_sum(kernels, scale), (kernels.double() * scale.double()[:, None, None]).sum(0))
    assert_equal(inner_products(kernels, kernel[0].double()), (kernels.double() * kernel.double()).sum((1, 2)))
    assert_equal(squared_norms(kernels), kernels.double().square().sum((1, 2)))


def test_fp32_is_kept_and_agrees_with_float64():
    mlp = make_mlp(32, 16, activation="silu", dtype=torch.float32)
    trace = make_trace(0, 16).to(dtype=torch.float32)
    exact = replace(mlp, **{name: tensor.double() for name, tensor in mlp.tensors().items()})
    found, wanted = neuron_kernels(mlp, trace), neuron_kernels(exact, trace)
    assert found.input_side.dtype == torch.float32
    ones = torch.ones(32)
    difference = found.combine(ones, ones) - wanted.combine(ones, ones)
    assert difference.norm() < 5e-3 * wanted.combine(ones, ones).norm()


def test_bad_input_is_refused_in_one_line():
    mlp = make_mlp()
    ones = torch.ones(12)
    with pytest.raises(InputError, match="`input_scale` must be positive, got 0.0"):
        with_scales(mlp, 0 * ones, ones)
    with pytest.raises(InputError, match="`up_scale` must be None for a block without a gate"):
        with_scales(mlp, ones, ones, ones)
