"""Kernels of factors and of masked weights: those of torch.func on the modules that stand in the model."""

import functools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pico import HIDDEN, pico_inputs, pico_model, sites_of
from random_mlp import make_mlp
from torch import Tensor
from transformers.pytorch_utils import Conv1D

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kernel import (
    BlockTrace,
    FactoredMLP,
    MaskedMLP,
    RandomHead,
    adam_kernel,
    compare_kernels,
    kernel_error,
    logit,
    ntk,
    plain_kernel,
)
from mlpfusion.kernel.gradient import WeightGradient
from mlpfusion.kinds.low_rank import LowRankLinear
from mlpfusion.measure.approximation import trained_block
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.sites import base_model, linear_maps, site_parameters
from mlpfusion.sites.traces import recorded_traces

assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-10)
any_seed = given(seed=st.integers(0, 10**6))
few = settings(max_examples=5, deadline=None)
every_kernel = pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel])
gated_or_not = pytest.mark.parametrize("gated", [False, True])
biased_or_not = pytest.mark.parametrize("biased", [False, True])
KINDS = {"low-rank": mlpfusion.SVD(), "masked": mlpfusion.Magnitude(), "narrow": mlpfusion.Fusion()}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def make_trace(seed: int, lengths: list[int], hidden_size: int) -> BlockTrace:
    x, cotangents = draw(seed, 2, sum(lengths), hidden_size)
    return BlockTrace(x, cotangents, torch.tensor(lengths))


def factored(mlp: MLP, rank: int, seed: int) -> FactoredMLP:
    factors = {
        name: (draw(seed + index, matrix.shape[0], rank), draw(seed - index, rank, matrix.shape[1]))
        for index, (name, matrix) in enumerate(mlp.matrices().items())
    }
    return FactoredMLP(replace(mlp, **{name: left @ right for name, (left, right) in factors.items()}), factors)


def masked(mlp: MLP, seed: int) -> MaskedMLP:
    zeroed = {name: m * (draw(seed + i, *m.shape) > 0.5) for i, (name, m) in enumerate(mlp.matrices().items(), start=2)}
    return MaskedMLP(replace(mlp, **zeroed))


def per_sample_gradients(block: FactoredMLP | MaskedMLP, trace: BlockTrace) -> dict[str, Tensor]:
    """All gradients by torch.func, one row a sample; a mask is a factor that does not train."""
    masks = {name: (matrix != 0).double() for name, matrix in block.mlp.matrices().items()}

    def scalar(tensors: dict[str, Tensor], x: Tensor, cotangents: Tensor) -> Tensor:
        if isinstance(block, FactoredMLP):
            fields = {name: tensors[f"{name}_left"] @ tensors[f"{name}_right"] for name in masks}
            fields |= {name: tensor for name, tensor in tensors.items() if name.endswith("bias")}
        else:
            fields = {name: tensor * masks[name] if name in masks else tensor for name, tensor in tensors.items()}
        return (forward(replace(block.mlp, **fields), x) * cotangents).sum()

    found: dict[str, list[Tensor]] = {}
    for x, d in zip(*(v.split(trace.lengths.tolist()) for v in (trace.inputs, trace.cotangents)), strict=True):
        for name, gradient in torch.func.grad(scalar)(block.tensors(), x, d).items():
            found.setdefault(name, []).append(gradient.flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


def assert_kernels_of(gradients: dict[str, Tensor], block: Any, trace: BlockTrace) -> None:
    adam, plain = adam_kernel(block, trace), plain_kernel(block, trace)
    assert list(adam.blocks) == list(plain.blocks) == list(block.tensors())
    assert set(gradients) == set(adam.blocks)
    for name, rows in gradients.items():
        assert_equal(adam.blocks[name], rows @ rows.sign().T)
        assert_equal(plain.blocks[name], rows @ rows.T)


@gated_or_not
@biased_or_not
@few
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5))
def test_the_kernels_of_factors_are_those_of_torch_func(gated, biased, seed, rank):
    block = factored(make_mlp(gated=gated, biased=biased, seed=seed), rank, seed)
    trace = make_trace(seed, [3, 1, 4, 3], block.mlp.hidden_size)
    assert_kernels_of(per_sample_gradients(block, trace), block, trace)


@gated_or_not
@biased_or_not
@few
@any_seed
def test_the_kernels_under_a_mask_are_those_of_torch_func(gated, biased, seed):
    block = masked(make_mlp(gated=gated, biased=biased, seed=seed), seed)
    trace = make_trace(seed, [3, 1, 4, 3], block.mlp.hidden_size)
    assert_kernels_of(per_sample_gradients(block, trace), block, trace)


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama-biased", "modernbert", "t5-gated", "opt"])
def test_the_kernels_of_every_kind_are_those_of_torch_func_on_the_installed_modules(name, method):
    model = pico_model(name, dtype=torch.float64)
    if name.startswith("t5"):
        model.set_attn_implementation("eager")  # torch.func cannot take a position bias through the other one
    mlpfusion.compress(model, method, layers="1", keep_ratio=0.25)
    site = next(s for s in sites_of(model) if s.layer == 1)
    head, batch = RandomHead.draw(HIDDEN, torch.Generator().manual_seed(0)), pico_inputs(name)
    trace = recorded_traces(model, [site], [batch], logit, head).blocks[site.path]
    block = trained_block(model, site)
    assert_kernels_of(module_gradients(model, site, head, batch), block, trace)


def module_gradients(model: Any, site: Any, head: RandomHead, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of f by all parameters of the modules at a site, by the names of `Block.tensors`."""
    base, names = base_model(model), parameter_names(model, site)
    parameters = {path: base.get_parameter(path).detach() for path in names}
    found: dict[str, list[Tensor]] = {}
    for i in range(len(batch["input_ids"])):
        sample = {key: x[i : i + 1] for key, x in batch.items()}

        def value(tensors: dict[str, Tensor], sample: dict[str, Tensor] = sample) -> Tensor:
            return head.logits(torch.func.functional_call(base, tensors, (), sample)[0], None)[0, 0]

        for path, gradient in torch.func.grad(value)(parameters).items():
            transposed = path.endswith("weight") and isinstance(base.get_submodule(path.rpartition(".")[0]), Conv1D)
            parts = (gradient.T if transposed else gradient).chunk(len(names[path]))
            for part, rows in zip(names[path], parts, strict=True):
                found.setdefault(part, []).append(rows.flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


def parameter_names(model: Any, site: Any) -> dict[str, list[str]]:
    """Path of every parameter at a site -> its names in a block (two for the halves of a fused gate and up)."""
    found: dict[str, list[str]] = {}
    for path, parts in linear_maps(site).items():
        linear = base_model(model).get_submodule(path)
        if isinstance(linear, LowRankLinear):
            for index, part in enumerate(parts):
                found |= {f"{path}.parts.{index}.{side}.weight": [f"{part}_{side}"] for side in ("left", "right")}
                if linear.pairs()[index][0].bias is not None:
                    found[f"{path}.parts.{index}.left.bias"] = [f"{part}_bias"]
            continue
        found[f"{path}.weight"] = list(parts)
        if linear.bias is not None:
            found[f"{path}.bias"] = [f"{part}_bias" for part in parts]
    assert len(found) == len(site_parameters(base_model(model), site))
    return found


@pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
def test_as_many_entries_are_summed_as_train(method, monkeypatch):
    model = pico_model("bert")
    record = mlpfusion.compress(model, method, layers="1", keep_ratio=0.25)
    site = sites_of(model)[1]
    counted = {"entries": 0}

    def count(accumulator: Any, gradient: WeightGradient, trace: BlockTrace, add: Any = ntk._add) -> None:
        entries = gradient.signals.shape[1] * gradient.vectors.shape[1]
        counted["entries"] += entries if gradient.entries is None else len(gradient.entries)
        counted["entries"] += gradient.signals.shape[1] if gradient.bias else 0
        add(accumulator, gradient, trace)

    monkeypatch.setattr(ntk, "_add", count)
    block = trained_block(model, site)
    adam_kernel(block, make_trace(0, [2, 3], HIDDEN))
    assert counted["entries"] + HIDDEN == block.num_parameters == record.sites[0].nonzero_parameters


@every_kernel
@gated_or_not
@pytest.mark.parametrize("make", [factored, masked])
def test_the_size_of_the_slab_changes_nothing(make, gated, kernel, monkeypatch):
    mlp = make_mlp(13, gated=gated)
    block = factored(mlp, 4, 0) if make is factored else masked(mlp, 0)
    trace = make_trace(0, [3, 1, 3, 7], mlp.hidden_size)
    wanted = kernel(block, trace)
    for neurons_a_slab in (1, 3):
        monkeypatch.setattr(ntk, "_CPU_COLUMNS", neurons_a_slab * mlp.hidden_size)
        found = kernel(block, trace)
        for name in wanted.blocks:
            assert_equal(found.blocks[name], wanted.blocks[name])


@every_kernel
def test_a_mask_that_keeps_nothing_has_the_kernel_zero_and_one_that_keeps_all_that_of_the_block(kernel):
    mlp, trace = make_mlp(), make_trace(0, [3, 1, 4], 5)
    dense, full = kernel(mlp, trace), kernel(MaskedMLP(mlp), trace)
    for name in dense.blocks:
        assert_equal(full.blocks[name], dense.blocks[name])
    empty = kernel(MaskedMLP(replace(mlp, up=0 * mlp.up)), trace)
    assert not empty.blocks["up"].any()
    assert empty.blocks["up_bias"].any()


def test_the_tokens_seen_through_the_factors_count_in_the_workspace():
    mlp, trace = make_mlp(gated=True), make_trace(0, [3, 2], 5)
    least = []
    for block in (mlp, factored(mlp, 4, 0)):
        with pytest.raises(InputError, match="must be at least") as refused:
            adam_kernel(block, trace, workspace_bytes=1)
        least.append(int(re.findall(r"at least (\d+)", str(refused.value))[0]))
    assert least[1] - least[0] == 3 * 2 * 5 * 4 * 8  # matrices, sides, tokens, rank, bytes
    adam_kernel(factored(mlp, 4, 0), trace, workspace_bytes=least[1])


def test_factors_are_compared_by_their_matrix():
    mlp, trace = make_mlp(gated=True), make_trace(0, [3, 1, 4], 5)
    before, after = adam_kernel(mlp, trace), adam_kernel(factored(mlp, 3, 0), trace)
    errors = compare_kernels(before, after)
    assert list(errors.blocks) == list(mlp.tensors())
    for name in mlp.matrices():
        both = after.blocks[f"{name}_left"] + after.blocks[f"{name}_right"]
        assert errors.blocks[name] == kernel_error(before.blocks[name], both)
    assert_equal(after.by_matrix().total, after.total)


def test_factors_that_do_not_fit_are_refused():
    block = factored(make_mlp(), 2, 0)
    with pytest.raises(InputError, match="`factors` must be of up, down, got those of up"):
        FactoredMLP(block.mlp, {"up": block.factors["up"]})
    left, right = block.factors["up"]
    with pytest.raises(InputError, match=r"the factors of `up` must fit its shape \(12, 5\), got"):
        FactoredMLP(block.mlp, {**block.factors, "up": (left, right[:1])})
    with pytest.raises(InputError, match="`workspace_bytes` must be at least"):
        adam_kernel(block, make_trace(0, [3, 2], 5), workspace_bytes=100)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_kernel
@pytest.mark.parametrize("make", [factored, masked])
def test_cuda_agrees_with_the_cpu(make, kernel):
    mlp = make_mlp(gated=True)
    block = factored(mlp, 3, 0) if make is factored else masked(mlp, 0)
    moved = replace(block.mlp, **{name: tensor.cuda() for name, tensor in block.mlp.tensors().items()})
    on_gpu = MaskedMLP(moved)
    if isinstance(block, FactoredMLP):
        pairs = {name: (left.cuda(), right.cuda()) for name, (left, right) in block.factors.items()}
        on_gpu = FactoredMLP(moved, pairs)
    trace = make_trace(0, [3, 1, 3, 7], mlp.hidden_size)
    found, wanted = kernel(on_gpu, trace.to("cuda")), kernel(block, trace)
    for name in wanted.blocks:
        assert found.blocks[name].is_cuda
        assert_equal(found.blocks[name].cpu(), wanted.blocks[name])
