"""The two calibrated methods of the paper's Table 7: their losses, their zeros, and what they leave alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from blocks import narrow
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mlp import make_mlp

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.maintain_ntk_gradient import GradientTarget, MaintainNTKGradient
from mlpfusion.methods.calibrated.maintain_output import MaintainOutput
from mlpfusion.methods.calibrated.student import Training, fused_start
from mlpfusion.methods.data_free.fusion import Fusion
from mlpfusion.mlp import MLP, forward

METHODS = {MaintainOutput(): "squared_error", MaintainNTKGradient(): "gradient_error"}
each_method = pytest.mark.parametrize(("method", "metric"), METHODS.items(), ids=lambda m: type(m).__name__)
each_layout = pytest.mark.parametrize(
    "layout", [{"biased": False}, {"biased": True}, {"gated": True, "biased": False}, {"gated": True}], ids=str
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
LENGTHS = (3, 1, 5, 2, 6, 4, 4, 5)


def calibration_of(mlp: MLP, seed: int = 0) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, sum(LENGTHS), mlp.hidden_size, generator=generator, dtype=torch.float64).to(mlp.up.dtype)
    return Calibration(BlockTrace(drawn[0], drawn[1], torch.tensor(LENGTHS))).with_targets(mlp)


def run(mlp: MLP, num_neurons: int, method: Any, seed: int = 0) -> Narrowed:
    return narrow(mlp, num_neurons, method, torch.Generator().manual_seed(seed), calibration_of(mlp))


def repeated(mlp: MLP, *counts: int) -> MLP:
    """Neuron i of `mlp` counts[i] times, the copies far from one another."""
    order = torch.tensor([i for copy in range(max(counts)) for i, count in enumerate(counts) if copy < count])
    fields = {name: t[order] for name, t in mlp.tensors().items() if not name.startswith("down")}
    return replace(mlp, **fields, down=mlp.down[:, order])


def sample_gradients(mlp: MLP, trace: BlockTrace) -> dict[str, torch.Tensor]:
    """The gradient of <cotangents, output> of every sample by every tensor but b2, by autograd."""
    leaves = {n: t.detach().requires_grad_() for n, t in mlp.tensors().items() if n != "down_bias"}
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in leaves}
    for inputs, cotangents in zip(trace.inputs.split(LENGTHS), trace.cotangents.split(LENGTHS), strict=True):
        value = (forward(replace(mlp, **leaves), inputs) * cotangents).sum()
        for name, gradient in zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True):
            rows[name].append(gradient.T if name == "down" else gradient)
    return {name: torch.stack(parts) for name, parts in rows.items()}


@each_layout
@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
def test_the_gradient_loss_is_that_of_autograd_and_its_own_gradient_too(layout, activation):
    mlp = make_mlp(12, 5, activation=activation, **layout)
    trace = calibration_of(mlp).trace
    start = fused_start(mlp, 4, torch.Generator().manual_seed(0))
    labels = start.clusters.labels.long()
    target = GradientTarget(start.original, labels)
    wanted = sample_gradients(start.original, trace)
    wanted = {n: torch.zeros(len(g), 4, *g.shape[2:], dtype=g.dtype).index_add(1, labels, g) for n, g in wanted.items()}

    def gap(student: MLP) -> torch.Tensor:
        found = sample_gradients(student, trace)
        return sum((found[name] - wanted[name]).square().sum() for name in wanted)  # pyright: ignore[reportReturnType]

    torch.testing.assert_close(target.squares(trace), sum(g.square().sum() for g in wanted.values()))
    torch.testing.assert_close(target.squared_gap(start.student, trace), gap(start.student))
    with torch.no_grad():
        torch.testing.assert_close(target.squared_gap(start.student, trace), gap_without_graph(gap, start.student))
    check_slopes(lambda student: target.squared_gap(student, trace), start.student, smooth=activation != "relu")


def gap_without_graph(gap: Any, student: MLP) -> torch.Tensor:
    with torch.enable_grad():
        return gap(student)


def check_slopes(loss: Any, student: MLP, *, smooth: bool) -> None:
    """The derivative of the loss along a random direction is its difference quotient."""
    generator = torch.Generator().manual_seed(0)
    leaves = {n: t.detach().clone().requires_grad_() for n, t in student.tensors().items() if n != "down_bias"}
    gradients = torch.autograd.grad(loss(replace(student, **leaves)), list(leaves.values()))
    away = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves.values()]
    values = []
    for step in (1e-6, -1e-6):
        moved = {name: leaf.detach() + step * one for (name, leaf), one in zip(leaves.items(), away, strict=True)}
        with torch.no_grad():
            values.append(float(loss(replace(student, **moved))))
    slope = float(sum((gradient * one).sum() for gradient, one in zip(gradients, away, strict=True)))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope, rel=1e-5 if smooth else 1e-4)


@each_method
@each_layout
def test_the_loss_is_zero_for_exact_duplicates_and_the_block_stays(method, metric, layout):
    mlp = repeated(make_mlp(5, 6, **layout), 1, 4, 2, 1, 3)
    result = run(mlp, 5, method)
    assert result.metrics[f"{metric}_start"] < 1e-28
    assert result.metrics[metric] < 1e-28
    assert result.mlp.output_scale is not None
    assert sorted(result.mlp.output_scale.tolist()) == [1, 1, 2, 3, 4]
    x = calibration_of(mlp).trace.inputs
    torch.testing.assert_close(forward(result.mlp, x), forward(mlp, x), rtol=0, atol=1e-12)


@each_method
@each_layout
@each_dtype
def test_duplicates_are_not_moved_by_rounding_errors(method, metric, layout, dtype):
    mlp = repeated(make_mlp(5, 6, dtype=dtype, **layout), 1, 4, 2, 1, 3)
    small = run(mlp, 5, method).mlp
    fused = narrow(mlp, 5, Fusion(), torch.Generator().manual_seed(0)).mlp
    x = calibration_of(mlp).trace.inputs
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    scale = float(forward(mlp, x).abs().max())
    assert float((forward(small, x) - forward(mlp, x)).abs().max()) < tolerance * scale
    assert fused.up.shape == small.up.shape


@each_method
@each_layout
@each_dtype
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_training_lowers_the_loss_and_leaves_p_and_the_output_bias(method, metric, layout, dtype, seed):
    mlp = make_mlp(24, 6, dtype=dtype, seed=seed, **layout)
    steady = replace(method, learning_rate=1e-2 if dtype == torch.bfloat16 else 1e-3, num_epochs=3, batch_tokens=8)
    result = run(mlp, 8, steady, seed)
    assert result.metrics[metric] < result.metrics[f"{metric}_start"]
    fused = fused_start(mlp, 8, torch.Generator().manual_seed(seed)).student
    assert result.mlp.output_scale is not None
    assert result.mlp.output_scale.dtype == torch.int32
    assert fused.output_scale is not None
    assert torch.equal(result.mlp.output_scale, fused.output_scale)
    for name, tensor in fused.tensors().items():
        assert torch.equal(result.mlp.tensors()[name], tensor) == (name == "down_bias")


@each_method
def test_permuting_the_neurons_changes_no_byte(method, metric):
    mlp = make_mlp(40, 6, dtype=torch.float32)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    assert mlp.up_bias is not None
    moved = replace(mlp, up=mlp.up[order], up_bias=mlp.up_bias[order], down=mlp.down[:, order])
    calibration = calibration_of(mlp)
    first, second = (narrow(one, 10, method, torch.Generator(), calibration).mlp for one in (mlp, moved))
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in first.tensors().items())


@each_method
def test_a_step_too_large_gives_the_fused_block_back(method, metric):
    mlp = make_mlp(24, 6)
    result = run(mlp, 8, replace(method, learning_rate=100.0))
    fused = fused_start(mlp, 8, torch.Generator().manual_seed(0)).student
    assert result.metrics[metric] == result.metrics[f"{metric}_start"]
    assert all(torch.equal(tensor, fused.tensors()[name]) for name, tensor in result.mlp.tensors().items())


@each_method
def test_the_loss_of_zero_outputs_and_gradients_is_zero(method, metric):
    mlp = make_mlp(biased=False)
    nothing = replace(mlp, up=torch.zeros_like(mlp.up), down=torch.zeros_like(mlp.down))
    result = run(nothing, 5, method)
    assert result.metrics[metric] == 0
    assert all(bool((tensor == 0).all()) for tensor in result.mlp.tensors().values())


def test_the_output_error_is_that_of_the_block():
    mlp = make_mlp(24, 6)
    calibration = calibration_of(mlp)
    result = narrow(mlp, 8, MaintainOutput(), torch.Generator().manual_seed(0), calibration)
    gap = (forward(result.mlp, calibration.trace.inputs) - calibration.targets_of(mlp)).square().sum()
    assert result.metrics["squared_error"] == pytest.approx(float(gap / calibration.targets_of(mlp).square().sum()))


def test_other_targets_are_aimed_at():
    mlp = make_mlp(24, 6)
    calibration = calibration_of(mlp)
    shifted = replace(calibration, targets=calibration.targets_of(mlp) + 1)
    results = [narrow(mlp, 8, MaintainOutput(), torch.Generator().manual_seed(0), c) for c in (calibration, shifted)]
    means = [float((forward(r.mlp, calibration.trace.inputs) - calibration.targets_of(mlp)).mean()) for r in results]
    assert means[1] > means[0] + 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be above 0, got 0.0"),
        ({"num_epochs": 0}, "`num_epochs` must be at least 1, got 0"),
        ({"batch_tokens": 0}, "`batch_tokens` must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options, message):
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            replace(method, **options)
    assert MaintainOutput().training() == Training(1e-3, 1, 64)


def test_an_activation_of_a_fixed_width_is_refused():
    mlp = replace(make_mlp(), activation=lambda z: z * torch.ones(12, dtype=z.dtype))
    with pytest.raises(InputError, match="`activation` must be element-wise"):
        run(mlp, 5, MaintainNTKGradient())
