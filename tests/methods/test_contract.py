"""What every method of the table must hold, tested by being in the table."""

from dataclasses import replace

import pytest
import torch
from blocks import narrow
from random_mlp import make_mlp

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.narrow import scale_of
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.names import method_from_name, method_name
from mlpfusion.methods.table import CALIBRATED, METHODS, ONE_SHOT
from mlpfusion.mlp import MLP, forward, neurons

NARROWING = [method for method in ONE_SHOT if METHODS[method].makes is Narrowed]
every_method = pytest.mark.parametrize("method", [method() for method in NARROWING], ids=lambda m: method_name(type(m)))
every_calibrated_method = pytest.mark.parametrize(
    "method", [method() for method in CALIBRATED if method in NARROWING], ids=lambda m: method_name(type(m))
)
every_exact_method = pytest.mark.parametrize(
    "method",
    [method() for method in NARROWING if not METHODS[method].why_inexact],
    ids=lambda m: method_name(type(m)),
)
every_layout = pytest.mark.parametrize(
    "layout", [{"biased": False}, {"biased": True}, {"gated": True, "biased": False}, {"gated": True}], ids=str
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def run(mlp: MLP, num_neurons: int, method, seed: int = 0) -> Narrowed:
    calibration = calibration_of(mlp) if type(method) in CALIBRATED else None
    return narrow(mlp, num_neurons, method, torch.Generator().manual_seed(seed), calibration)


def calibration_of(mlp: MLP, seed: int = 2) -> Calibration:
    """Six samples of different lengths; what enters and the cotangents in the dtype of the block."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 1, 9, 4, 7, 4])
    inputs, cotangents = torch.randn(2, 30, mlp.hidden_size, generator=generator, dtype=torch.float64).to(mlp.up.dtype)
    finite = replace(mlp, **{name: tensor.nan_to_num() for name, tensor in mlp.tensors().items()})
    return Calibration(BlockTrace(inputs, cotangents, lengths)).with_targets(finite)


def inputs(mlp: MLP, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(9, mlp.hidden_size, generator=generator, dtype=torch.float64).to(mlp.up.dtype)


def test_every_method_is_a_public_name():
    """A row of the table and its two lines in `mlpfusion/__init__.py` belong together."""
    assert {getattr(mlpfusion, method.__name__) for method in METHODS} == set(METHODS)
    assert {method.__name__ for method in METHODS} <= set(dir(mlpfusion))


@every_exact_method
@every_layout
@every_dtype
def test_full_width_keeps_the_function(method, layout, dtype):
    mlp = make_mlp(dtype=dtype, **layout)
    x = inputs(mlp)
    torch.testing.assert_close(forward(run(mlp, 12, method).mlp, x), forward(mlp, x))


@every_method
@every_layout
@every_dtype
def test_the_asked_width_dtype_and_kind_of_block_are_delivered(method, layout, dtype):
    mlp = make_mlp(dtype=dtype, **layout)
    for width in (1, 5, 11):
        small = run(mlp, width, method).mlp
        assert small.num_neurons == width
        assert small.tensors().keys() == mlp.tensors().keys()
        assert {tensor.dtype for tensor in small.tensors().values()} == {dtype}
        assert all(tensor.is_contiguous() for tensor in small.tensors().values())
        assert len({tensor.untyped_storage().data_ptr() for tensor in small.tensors().values()}) == len(small.tensors())


@every_method
def test_the_row_names_the_constants_of_the_block(method):
    row, mlp = METHODS[type(method)], make_mlp()
    small = run(mlp, 5, method)
    step = row.second_step(method)
    if step is not None:
        trace = calibration_of(mlp).trace
        small = step(mlp, trace, small, trace)
    assert scale_of(small.mlp) == row.scales(method)


@pytest.mark.parametrize("choice", ["energy", "cholesky", "fusion"])
@pytest.mark.parametrize("refit", [True, False])
def test_without_a_match_the_constants_are_those_of_the_choice(choice, refit):
    method = mlpfusion.NTKMatch(choice=choice, refit=refit, match="none")
    assert METHODS[type(method)].scales(method) == scale_of(run(make_mlp(), 5, method).mlp)


@every_method
@every_layout
def test_inputs_and_the_output_bias_are_untouched(method, layout):
    mlp = make_mlp(**layout)
    before = {name: tensor.clone() for name, tensor in mlp.tensors().items()}
    small = run(mlp, 5, method).mlp
    for name, tensor in mlp.tensors().items():
        assert torch.equal(tensor, before[name])
    if mlp.down_bias is not None and method_name(type(method)) not in ("ntk-match", "flap"):  # which refit it
        assert small.down_bias is not None
        assert torch.equal(small.down_bias, mlp.down_bias)


@every_method
@every_dtype
def test_the_same_seed_gives_the_same_bytes(method, dtype):
    mlp = make_mlp(40, 6, dtype=dtype)
    first, second = run(mlp, 10, method, seed=3).mlp, run(mlp, 10, method, seed=3).mlp
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, second.tensors()[name])


@every_method
def test_a_dead_neuron_does_no_harm(method):
    mlp = make_mlp()
    dead = replace(mlp, up=mlp.up.clone(), down=mlp.down.clone())
    dead.up[3], dead.down[:, 3] = 0.0, 0.0
    small = run(dead, 6, method).mlp
    assert all(torch.isfinite(tensor).all() for tensor in small.tensors().values())


@pytest.mark.parametrize("name", ["fusion", "folded-fusion", "maintain-output", "maintain-ntk-gradient", "ntk-match"])
@every_layout
def test_exact_duplicates_fuse_without_change(name, layout):
    half = make_mlp(6, **layout)
    twice = replace(
        half,
        **{k: torch.cat([v, v]) for k, v in half.tensors().items() if k not in ("down", "down_bias")},
        down=torch.cat([half.down, half.down], dim=1),
    )
    x = inputs(twice)
    options = {"choice": "fusion"} if name == "ntk-match" else {}
    for seed in range(5):
        torch.testing.assert_close(
            forward(run(twice, 6, method_from_name(name, options), seed).mlp, x), forward(twice, x)
        )


@every_method
def test_permuting_the_neurons_changes_nothing_but_their_order(method):
    mlp = make_mlp(40, 6)
    assert mlp.up_bias is not None
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    moved = replace(mlp, up=mlp.up[order], up_bias=mlp.up_bias[order], down=mlp.down[:, order])
    first, second = neurons(run(mlp, 10, method).mlp), neurons(run(moved, 10, method).mlp)
    torch.testing.assert_close(first[first[:, 0].argsort()], second[second[:, 0].argsort()])


@every_method
def test_bad_input_names_its_field(method):
    mlp = make_mlp()
    for width in (0, -1, 13):
        with pytest.raises(InputError, match="`num_neurons` must be between 1 and 12, got"):
            run(mlp, width, method)
    mlp.up[2, 1] = float("nan")
    with pytest.raises(InputError, match="`up` must be finite, got 1 NaN or Inf"):
        run(mlp, 5, method)


@every_calibrated_method
def test_a_calibration_that_does_not_fit_or_is_not_finite_is_refused(method):
    mlp, generator = make_mlp(), torch.Generator()
    good = calibration_of(mlp)
    for name, bad in [
        ("inputs", replace(good, trace=replace(good.trace, inputs=spoiled(good.trace.inputs)))),
        ("cotangents", replace(good, trace=replace(good.trace, cotangents=spoiled(good.trace.cotangents)))),
        ("targets", replace(good, targets=spoiled(good.trace.inputs))),
        ("weights", replace(good, weights=spoiled(torch.ones_like(good.trace.inputs)).sum(1))),
    ]:
        with pytest.raises(InputError, match=f"`calibration` must be finite, got 2 NaN or Inf in its {name}"):
            narrow(mlp, 5, method, generator, bad)
    with pytest.raises(InputError, match="`calibration` must be given for"):
        narrow(mlp, 5, method, generator)
    with pytest.raises(InputError, match=f"`weights` must be of {good.trace.num_tokens} tokens, got \\(2,\\)"):
        replace(good, weights=torch.ones(2))
    with pytest.raises(InputError, match="`calibration` must have hidden size 5, got 7"):
        narrow(mlp, 5, method, generator, calibration_of(make_mlp(hidden_size=7)))


@every_calibrated_method
def test_a_calibration_is_left_as_it_is(method):
    mlp = make_mlp()
    calibration, fresh = calibration_of(mlp), calibration_of(mlp)
    narrow(mlp, 5, method, torch.Generator(), calibration)
    assert calibration.targets is not None
    assert fresh.targets is not None
    assert torch.equal(calibration.targets, fresh.targets)
    for name in ("inputs", "cotangents", "lengths"):
        assert torch.equal(getattr(calibration.trace, name), getattr(fresh.trace, name))


def test_a_calibration_for_a_method_that_takes_none_is_refused():
    mlp = make_mlp()
    with pytest.raises(InputError, match="`calibration` must be left out for fusion"):
        narrow(mlp, 5, method_from_name("fusion"), torch.Generator(), calibration_of(mlp))


def spoiled(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with one NaN and one infinity."""
    copy = tensor.clone()
    copy[3, 1], copy[4, 0] = float("nan"), float("inf")
    return copy


def test_an_unknown_method_is_refused_with_the_list_of_known_ones():
    with pytest.raises(InputError, match="`method` must be one of fusion, .*, got 'magic'"):
        method_from_name("magic")
    with pytest.raises(InputError, match="`method` must be a config of Fusion"):
        run(make_mlp(), 5, "fusion")


def test_options_are_checked_by_name_type_and_value():
    assert method_from_name("fusion", {"num_init": 3}).num_init == 3
    with pytest.raises(InputError, match="options of fusion must be among .*, got 'restarts'"):
        method_from_name("fusion", {"restarts": 3})
    with pytest.raises(InputError, match="`num_init` of fusion must be of type int, got 'many'"):
        method_from_name("fusion", {"num_init": "many"})
    with pytest.raises(InputError, match="`norm` of neuron-pruning must be 1 or 2, got 3"):
        method_from_name("neuron-pruning", {"norm": 3})
