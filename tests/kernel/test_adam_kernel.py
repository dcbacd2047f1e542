"""The kernels of one block: against autograd, against torch.func, and the exact identities of the paper in float64."""

import functools
from dataclasses import replace

import pytest
import torch
from blocks import narrow
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mlp import make_mlp
from reference import adam_kernel as slow_adam_kernel
from reference import expanded
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel import (
    BlockKernels,
    BlockTrace,
    accumulate,
    adam_and_plain_kernel,
    adam_kernel,
    adam_kernel_of_parameters,
    join_kernels,
    ntk,
    plain_kernel,
)
from mlpfusion.methods.data_free import fusion
from mlpfusion.mlp import MLP, forward

assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
any_seed = given(seed=st.integers(0, 10**6))
few = settings(max_examples=5, deadline=None)
every_block = pytest.mark.parametrize(
    ("gated", "biased", "activation"),
    [(g, b, a) for g in (False, True) for b in (False, True) for a in ("gelu", "relu", "silu")],
)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1), dtype=dtype)


def make_trace(seed: int, lengths: list[int], hidden_size: int, dtype: torch.dtype = torch.float64) -> BlockTrace:
    x, cotangents = draw(seed, 2, sum(lengths), hidden_size).to(dtype)
    return BlockTrace(x, cotangents, torch.tensor(lengths))


def scaled(mlp: MLP, seed: int) -> MLP:
    s1, s2 = draw(seed, 2, mlp.num_neurons).abs().to(mlp.up.dtype) + 0.1
    return replace(mlp, input_scale=s1, output_scale=s2)


def per_sample_gradients(mlp: MLP, x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
    """All gradients by vmap(grad), one row a sample."""

    def scalar(tensors: dict[str, Tensor], x: Tensor, cotangents: Tensor) -> Tensor:
        return (forward(replace(mlp, **tensors), x) * cotangents).sum()

    gradients = torch.func.vmap(torch.func.grad(scalar), in_dims=(None, 0, 0))(mlp.tensors(), x, cotangents)
    return {name: gradient.flatten(1) for name, gradient in gradients.items()}


@every_block
@few
@any_seed
def test_the_adam_kernel_is_that_of_autograd_one_sample_at_a_time(gated, biased, activation, seed):
    mlp = scaled(make_mlp(gated=gated, biased=biased, activation=activation, seed=seed), seed)
    x, cotangents = draw(seed, 2, 4, 3, mlp.hidden_size)
    trace = BlockTrace(x.flatten(0, 1), cotangents.flatten(0, 1), torch.full((4,), 3))
    wanted = slow_adam_kernel(mlp, x, cotangents)
    found = adam_kernel(mlp, trace)
    assert list(found.blocks) == list(mlp.tensors()) == list(wanted)
    for name, kernel in wanted.items():
        assert_equal(found.blocks[name], kernel)
    assert_equal(found.total, torch.stack(list(wanted.values())).sum(0))


@every_block
@few
@any_seed
def test_both_kernels_are_those_of_vmap_of_grad(gated, biased, activation, seed):
    mlp = scaled(make_mlp(gated=gated, biased=biased, activation=activation, seed=seed), seed)
    x, cotangents = draw(seed, 2, 5, 2, mlp.hidden_size)
    trace = BlockTrace(x.flatten(0, 1), cotangents.flatten(0, 1), torch.full((5,), 2))
    adam, plain = adam_kernel(mlp, trace), plain_kernel(mlp, trace)
    for name, rows in per_sample_gradients(mlp, x, cotangents).items():
        assert_equal(adam.blocks[name], rows @ rows.sign().T)
        assert_equal(plain.blocks[name], rows @ rows.T)


@every_block
@few
@given(seed=st.integers(0, 10**6), num_neurons=st.integers(1, 12))
def test_the_fused_block_has_the_adam_kernel_of_the_expanded_one(gated, biased, activation, seed, num_neurons):
    mlp = make_mlp(gated=gated, biased=biased, activation=activation, seed=seed)
    trace = make_trace(seed, [3, 1, 4, 3], mlp.hidden_size)
    clusters = fusion.cluster_neurons(mlp, num_neurons, fusion.Fusion(), torch.Generator().manual_seed(seed))
    fused = narrow(mlp, num_neurons, fusion.Fusion(), torch.Generator().manual_seed(seed)).mlp
    found, wanted = adam_kernel(fused, trace), adam_kernel(expanded(mlp, clusters.labels), trace)
    assert list(found.blocks) == list(wanted.blocks)
    for name in wanted.blocks:
        assert_equal(found.blocks[name], wanted.blocks[name])


@pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel])
@pytest.mark.parametrize("gated", [False, True])
@few
@any_seed
def test_samples_of_any_lengths_together_give_what_pairs_of_them_give(gated, kernel, seed):
    lengths = torch.randint(1, 6, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    mlp = make_mlp(gated=gated, seed=seed)
    trace = make_trace(seed, lengths, mlp.hidden_size)
    whole = kernel(mlp, trace)
    for pair in ([0, 1], [4, 2], [5, 5]):
        indices = torch.tensor(pair)
        part = kernel(mlp, trace.select(indices))
        for name in whole.blocks:
            assert_equal(part.blocks[name], whole.blocks[name][indices][:, indices])


@pytest.mark.parametrize("samples_a_chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("gated", [False, True])
@few
@any_seed
def test_one_pass_gives_both_kernels_in_chunks_of_any_size(gated, samples_a_chunk, seed):
    lengths = torch.randint(1, 4, (7,), generator=torch.Generator().manual_seed(seed)).tolist()
    mlp = scaled(make_mlp(gated=gated, seed=seed), seed)
    trace = make_trace(seed, lengths, mlp.hidden_size)
    wanted = adam_kernel(mlp, trace), plain_kernel(mlp, trace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accumulate, "MAX_CHUNK", samples_a_chunk * mlp.num_neurons * mlp.hidden_size)
        found = adam_and_plain_kernel(mlp, trace)
    for one, other in zip(found, wanted, strict=True):
        assert list(one.blocks) == list(other.blocks)
        for name in one.blocks:
            assert_equal(one.blocks[name], other.blocks[name])


@pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel])
@pytest.mark.parametrize("gated", [False, True])
def test_the_size_of_the_slab_changes_nothing(gated, kernel, monkeypatch):
    mlp = scaled(make_mlp(13, gated=gated), 0)
    trace = make_trace(0, [3, 1, 3, 7], mlp.hidden_size)
    wanted = kernel(mlp, trace)
    for neurons_a_slab in (1, 4):
        monkeypatch.setattr(ntk, "_CPU_COLUMNS", neurons_a_slab * mlp.hidden_size)
        assert len(ntk.neuron_slabs(mlp, trace, 1 << 30, column_bytes=8, fixed_bytes=0)) == -(-13 // neurons_a_slab)
        found = kernel(mlp, trace)
        for name in wanted.blocks:
            assert_equal(found.blocks[name], wanted.blocks[name])


def test_a_zero_gradient_has_sign_zero():
    mlp = make_mlp(activation="relu", biased=False)
    mlp = replace(mlp, up=mlp.up.abs())
    x, cotangents = draw(0, 2, 6, mlp.hidden_size)
    x[:2] = -x[:2].abs()  # every neuron is dead for sample 0
    cotangents[2:4] = 0
    for trace in (BlockTrace(a, b, torch.full((3,), 2)) for a, b in [(x, cotangents), (x.float(), cotangents.float())]):
        kernels = adam_kernel(replace(mlp, up=mlp.up.to(trace.inputs), down=mlp.down.to(trace.inputs)), trace)
        for kernel in kernels.blocks.values():
            assert not kernel[:2].any()
            assert not kernel[:, :2].any()
            assert kernel[2, 2] > 0


@pytest.mark.parametrize("gated", [False, True])
@few
@any_seed
def test_fp32_agrees_with_float64(gated, seed):
    # Not GELU: far left it is zero in fp32 and has a sign in float64.
    mlp = make_mlp(64, 32, gated=gated, activation="silu", dtype=torch.float32, seed=seed)
    trace = make_trace(seed, [3, 1, 9, 3, 5, 2], 32, torch.float32)
    exact = replace(mlp, **{name: tensor.double() for name, tensor in mlp.tensors().items()})
    for kernel, tolerance in ((plain_kernel, 1e-5), (adam_kernel, 5e-3)):  # one flipped sign is up to 2e-3 of a kernel
        found, wanted = kernel(mlp, trace).total, kernel(exact, trace).total
        assert found.dtype == torch.float64
        assert (found - wanted).norm() < tolerance * wanted.norm()


def test_bf16_weights_give_fp32_gradients():
    mlp = make_mlp(dtype=torch.bfloat16)
    trace = make_trace(0, [3, 2], mlp.hidden_size, torch.bfloat16)
    exact = replace(mlp, **{name: tensor.float() for name, tensor in mlp.tensors().items()})
    assert_equal(adam_kernel(mlp, trace).total, adam_kernel(exact, trace).total)


def test_an_activation_that_works_in_place_and_one_of_many_steps_are_fine():
    mlp = make_mlp(activation="relu")
    trace = make_trace(0, [3, 2], mlp.hidden_size)
    in_place = replace(mlp, activation=torch.nn.ReLU(inplace=True))
    assert_equal(adam_kernel(in_place, trace).total, adam_kernel(mlp, trace).total)
    identity, doubled = (replace(mlp, activation=a) for a in (lambda z: z, lambda z: (z + z) / 2))
    assert_equal(adam_kernel(identity, trace).total, adam_kernel(doubled, trace).total)


def test_slabs_of_any_parameters_give_the_kernel_of_the_block():
    mlp = make_mlp(gated=True)
    x, cotangents = draw(0, 2, 5, 2, mlp.hidden_size)
    trace = BlockTrace(x.flatten(0, 1), cotangents.flatten(0, 1), torch.full((5,), 2))
    gradients = per_sample_gradients(mlp, x, cotangents)
    slabs = ((name, part) for name, rows in gradients.items() for part in rows.split(7, dim=1))
    found, wanted = adam_kernel_of_parameters(slabs), adam_kernel(mlp, trace)
    assert set(found.blocks) == set(wanted.blocks)
    for name in wanted.blocks:
        assert_equal(found.blocks[name], wanted.blocks[name])


def test_several_blocks_join_into_one_kernel():
    mlp = make_mlp()
    kernels = adam_kernel(mlp, make_trace(0, [3, 2], 5)), adam_kernel(mlp, make_trace(1, [1, 4], 5))
    joined = join_kernels(dict(zip(("layers.0", "layers.1"), kernels, strict=True)))
    assert_equal(joined.total, kernels[0].total + kernels[1].total)
    assert "layers.1.up_bias" in joined.blocks
    assert_equal(joined.without("down_bias"), kernels[0].without("down_bias") + kernels[1].without("down_bias"))


def test_bad_input_is_refused_in_one_line():
    mlp, trace = make_mlp(), make_trace(0, [3, 2], 5)
    with pytest.raises(InputError, match="`trace` must have hidden size 5, got 4"):
        adam_kernel(mlp, make_trace(0, [3, 2], 4))
    with pytest.raises(InputError, match="`activation` must be element-wise"):
        adam_kernel(replace(mlp, activation=lambda z: z * torch.ones(12)), trace)
    with pytest.raises(InputError, match="`workspace_bytes` must be at least .*, got 100"):
        adam_kernel(mlp, trace, workspace_bytes=100)
    with pytest.raises(InputError, match="the gradients must be finite, got NaN or Inf in those of `up`"):
        adam_kernel(replace(mlp, up=mlp.up * float("nan")), trace)
    with pytest.raises(InputError, match="`slab` must have 3 samples as those before, got 2"):
        adam_kernel_of_parameters([("a", torch.ones(3, 4)), ("b", torch.ones(2, 4))])
    with pytest.raises(InputError, match="`kernels` must be of the same samples"):
        join_kernels({"a": adam_kernel(mlp, trace), "b": adam_kernel(mlp, trace.select(torch.tensor([0])))})
    with pytest.raises(InputError, match="`blocks` must hold at least one kernel"):
        BlockKernels({})
    with pytest.raises(InputError, match="`lengths` must sum to the 5 tokens, got 4"):
        replace(trace, lengths=torch.tensor([3, 1]))
    with pytest.raises(InputError, match="`lengths` must be one positive number a sample"):
        replace(trace, lengths=torch.tensor([5, 0]))
    with pytest.raises(InputError, match="`samples` must be between 0 and 1"):
        trace.select(torch.tensor([2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kernel", [adam_kernel, plain_kernel])
@pytest.mark.parametrize("gated", [False, True])
def test_cuda_agrees_with_the_cpu(gated, kernel):
    mlp = scaled(make_mlp(gated=gated), 0)
    trace = make_trace(0, [3, 1, 3, 7], mlp.hidden_size)
    tensors = {name: tensor.cuda() for name, tensor in mlp.tensors().items()}
    assert mlp.input_scale is not None
    assert mlp.output_scale is not None
    moved = replace(mlp, **tensors, input_scale=mlp.input_scale.cuda(), output_scale=mlp.output_scale.cuda())
    found, wanted = kernel(moved, trace.to("cuda")), kernel(mlp, trace)
    for name in wanted.blocks:
        assert found.blocks[name].is_cuda
        assert_equal(found.blocks[name].cpu(), wanted.blocks[name])
