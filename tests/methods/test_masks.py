from dataclasses import replace

import pytest
import torch
from blocks import mask
from random_mlp import make_mlp

from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import Masked
from mlpfusion.methods.data_free.magnitude import Magnitude
from mlpfusion.methods.data_free.ntk_sap import NTKSAP, output_change
from mlpfusion.methods.names import method_name
from mlpfusion.mlp import MLP, forward

every_method = pytest.mark.parametrize("method", [Magnitude(), NTKSAP()], ids=lambda m: method_name(type(m)))
every_layout = pytest.mark.parametrize("layout", [{"biased": False}, {"biased": True}, {"gated": True}], ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def run(mlps: list[MLP], keep_ratio: float, method, seed: int = 0) -> list[Masked]:
    return mask(mlps, keep_ratio, method, [torch.Generator().manual_seed(seed + i) for i in range(len(mlps))])


def num_zeros(mlp: MLP) -> int:
    return sum(int((weight == 0).sum()) for weight in mlp.matrices().values())


def size(mlp: MLP) -> int:
    return sum(weight.numel() for weight in mlp.matrices().values())


@every_method
@every_layout
@every_dtype
def test_exactly_the_asked_number_of_zeros(method, layout, dtype):
    mlps = [make_mlp(40, dtype=dtype, seed=seed, **layout) for seed in (0, 1)]
    total = sum(size(mlp) for mlp in mlps)
    for keep_ratio in (1.0, 0.5, 0.25, 0.1):
        found = run(mlps, keep_ratio, method)
        assert sum(num_zeros(one.mlp) for one in found) == round((1 - keep_ratio) * total)
        for one, mlp in zip(found, mlps, strict=True):
            for name, tensor in one.mlp.tensors().items():
                original = mlp.tensors()[name]
                kept = tensor != 0 if tensor.ndim == 2 else torch.ones_like(tensor, dtype=torch.bool)
                assert torch.equal(tensor[kept], original[kept])
                assert tensor.dtype == dtype
                assert tensor.is_contiguous()
                assert tensor.data_ptr() != original.data_ptr()


@every_method
def test_the_same_seed_gives_the_same_zeros_and_inputs_stay(method):
    mlp = make_mlp(30, gated=True)
    before = {name: tensor.clone() for name, tensor in mlp.tensors().items()}
    first, second = (run([mlp], 0.25, method)[0].mlp.tensors() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.tensors().items())


@every_method
def test_permuting_the_neurons_permutes_the_zeros(method):
    mlp = make_mlp(30)
    assert mlp.up_bias is not None
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    moved = replace(mlp, up=mlp.up[order], up_bias=mlp.up_bias[order], down=mlp.down[:, order])
    first, second = run([mlp], 0.25, method)[0].mlp, run([moved], 0.25, method)[0].mlp
    assert torch.equal(first.up[order], second.up)
    assert torch.equal(first.down[:, order], second.down)


@every_method
def test_bad_input_names_its_field(method):
    with pytest.raises(InputError, match="`keep_ratio` must be above 0 and at most 1, got 0"):
        run([make_mlp()], 0, method)
    mlp = make_mlp()
    mlp.up[2, 1] = float("nan")
    with pytest.raises(InputError, match="`up` must be finite, got 1 NaN or Inf"):
        run([mlp], 0.5, method)


def test_magnitude_ranks_over_all_blocks():
    small, large = make_mlp(30), make_mlp(30)
    large = replace(large, up=100 * large.up, down=100 * large.down)
    found = run([small, large], 0.5, Magnitude())
    assert num_zeros(found[0].mlp) > 0.9 * size(small)
    assert num_zeros(found[1].mlp) < 0.1 * size(large)


def test_magnitude_zeroes_the_smallest_and_of_equal_ones_the_first():
    mlp = make_mlp(30)
    smallest = torch.cat([w.abs().flatten() for w in mlp.matrices().values()]).sort().values[149]
    for name, weight in run([mlp], 0.5, Magnitude())[0].mlp.matrices().items():
        assert torch.equal(weight == 0, mlp.matrices()[name].abs() <= smallest)
    equal = replace(mlp, up=torch.ones_like(mlp.up), down=torch.ones_like(mlp.down))
    found = run([equal], 0.25, Magnitude())[0].mlp
    assert torch.cat([found.up.flatten(), found.down.flatten()]).tolist() == [0.0] * 225 + [1.0] * 75


def test_ntk_sap_ranks_each_block_by_itself():
    small, large = make_mlp(30), make_mlp(30)
    large = replace(large, up=100 * large.up, down=100 * large.down)
    for one in run([small, large], 0.25, NTKSAP()):
        assert num_zeros(one.mlp) == round(0.75 * size(small))


def test_the_mean_change_tends_to_the_trace_of_the_kernel():
    mlp = make_mlp(20, gated=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    weights = mlp.matrices()
    jacobians = torch.func.jacrev(lambda w: forward(replace(mlp, **w), x))(weights)
    trace = sum(float(jacobian.square().sum()) for jacobian in jacobians.values())
    ones = {name: torch.ones_like(weight) for name, weight in weights.items()}
    changes = []
    for _ in range(300):
        noise = {
            name: torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            for name, weight in weights.items()
        }
        changes.append(float(output_change(mlp, ones, x, noise, 1e-4)) / 1e-8)
    assert sum(changes) / len(changes) == pytest.approx(trace, rel=0.05)


def test_ntk_sap_removes_a_neuron_that_does_nothing_first():
    mlp = make_mlp(20)
    mlp.up[3], mlp.down[:, 3] = 1e-6, 1e-6
    found = run([mlp], 0.9, NTKSAP())[0].mlp
    assert (found.up[3] == 0).all() or (found.down[:, 3] == 0).all()


@pytest.mark.parametrize("name", ["num_rounds", "num_draws", "num_tokens", "epsilon", "std"])
def test_bad_options_are_named(name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        NTKSAP(**{name: 0})
