"""NTKMatch: exact identities of its parts, and what each part improves."""

from dataclasses import replace

import pytest
import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.kernel import BlockTrace, adam_kernel, kernel_error, neuron_kernels, random_trace, with_scales
from mlpfusion.kernel.matching import Matching, match_kernel
from mlpfusion.methods.calibrated.calibration import Calibration, token_weights
from mlpfusion.methods.calibrated.ntk_match import CHOICES, NTKMatch
from mlpfusion.methods.calibrated.refit import (
    Refinement,
    moments,
    output_error,
    refine_weights,
    refit_down,
    refit_part,
    split_samples,
)
from mlpfusion.methods.names import method_from_name
from mlpfusion.mlp import MLP, fold, forward, hidden_activations, select_neurons

NOTHING = NTKMatch(refit=False, refine_epochs=0, match="none")
every_layout = pytest.mark.parametrize("layout", [{}, {"biased": False}, {"gated": True}], ids=str)
every_seed = pytest.mark.parametrize("seed", range(3))


def trace_of(mlp: MLP, seed: int, num_samples: int = 30) -> BlockTrace:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (num_samples,), generator=generator)
    inputs = torch.randn(int(lengths.sum()), mlp.hidden_size, generator=generator, dtype=torch.float64)
    return random_trace(inputs.to(mlp.up.dtype), lengths, generator)


def weighted(mlp: MLP, trace: BlockTrace) -> Calibration:
    return Calibration(trace, weights=token_weights(trace.cotangents)).with_targets(mlp)


def run(mlp: MLP, width: int, config: NTKMatch, seed: int = 0) -> MLP:
    calibration = Calibration(trace_of(mlp, seed)).with_targets(mlp)
    return narrow(mlp, width, config, torch.Generator().manual_seed(seed), calibration).mlp


@pytest.mark.parametrize("choice", ["energy", "cholesky"])
@every_layout
@every_seed
def test_full_width_without_refit_is_the_original_block_bit_by_bit(choice, layout, seed):
    mlp = make_mlp(seed=seed, **layout)
    same = run(mlp, 12, replace(NOTHING, choice=choice), seed)
    assert same.tensors().keys() == mlp.tensors().keys()
    assert all(torch.equal(tensor, mlp.tensors()[name]) for name, tensor in same.tensors().items())
    assert same.input_scale is None
    assert same.output_scale is None


@every_layout
@every_seed
def test_full_width_with_every_part_keeps_function_and_kernel(layout, seed):
    mlp = make_mlp(seed=seed, **layout)
    same, trace = run(mlp, 12, NTKMatch(), seed), trace_of(mlp, 9)
    torch.testing.assert_close(forward(same, trace.inputs), forward(mlp, trace.inputs), rtol=1e-5, atol=1e-6)
    assert kernel_error(adam_kernel(mlp, trace).total, adam_kernel(same, trace).total).relative < 1e-4


@every_layout
@every_seed
def test_diagonals_of_ones_are_the_unmatched_block(layout, seed):
    mlp = run(make_mlp(seed=seed, **layout), 5, replace(NTKMatch(), match="none"), seed)
    ones, trace = torch.ones(5, dtype=torch.float64), trace_of(mlp, 9)
    scaled = with_scales(mlp, ones, ones)
    assert torch.equal(forward(scaled, trace.inputs), forward(mlp, trace.inputs))
    assert torch.equal(adam_kernel(scaled, trace).total, adam_kernel(mlp, trace).total)


@every_layout
@every_seed
def test_matching_leaves_the_output_and_the_kernel_is_linear_in_the_diagonals(layout, seed):
    original = make_mlp(seed=seed, **layout)
    unmatched, matched = (run(original, 5, replace(NTKMatch(), match=match), seed) for match in ("none", "neuron"))
    trace = trace_of(original, 9)
    torch.testing.assert_close(forward(matched, trace.inputs), forward(unmatched, trace.inputs), rtol=1e-5, atol=1e-6)
    assert matched.input_scale is not None
    assert matched.output_scale is not None
    assert float(matched.input_scale.min()) > 0
    assert float(matched.output_scale.min()) > 0
    if original.gate is None:
        linear = neuron_kernels(unmatched, trace).combine(matched.input_scale, matched.output_scale)
        torch.testing.assert_close(linear, adam_kernel(matched, trace).total, rtol=1e-5, atol=1e-5)


@every_layout
@every_seed
def test_a_number_a_layer_fits_each_side_and_a_number_a_neuron_the_total_better(layout, seed):
    original = make_mlp(24, 6, seed=seed, **layout)
    small = run(original, 6, replace(NTKMatch(), match="none"), seed)
    trace = trace_of(original, seed + 20, num_samples=60)
    target = adam_kernel(original, trace)
    matched = [match_kernel(small, trace, target, Matching(per)) for per in ("layer", "neuron")]
    before, layer, neuron = (adam_kernel(one, trace) for one in (small, *matched))
    for side in ("up", "gate", "down"):
        names = [name for name in target.blocks if name == side or (name == f"{side}_bias" and side != "down")]
        if names:
            wanted, start, end = (torch.stack([k.blocks[n] for n in names]).sum(0) for k in (target, before, layer))
            assert kernel_error(wanted, end).relative < kernel_error(wanted, start).relative
    assert kernel_error(target.total, neuron.total).relative < kernel_error(target.total, layer.total).relative
    assert kernel_error(target.total, neuron.total).relative < kernel_error(target.total, before.total).relative


@every_layout
@every_seed
def test_a_kernel_that_the_neurons_can_make_is_made_exactly(layout, seed):
    mlp, generator = make_mlp(seed=seed, **layout), torch.Generator().manual_seed(seed)
    scales = [0.5 + torch.rand((), generator=generator, dtype=torch.float64) * torch.ones(12) for _ in range(2)]
    trace = trace_of(mlp, seed)
    target = adam_kernel(with_scales(mlp, *scales), trace)
    found = match_kernel(mlp, trace, target, Matching("layer"))
    torch.testing.assert_close(adam_kernel(found, trace).total, target.total, rtol=1e-5, atol=1e-7)


def test_a_block_whose_gradients_are_all_zero_keeps_scales_of_one():
    mlp = make_mlp()
    trace = trace_of(mlp, 0)
    silent = replace(trace, cotangents=torch.zeros_like(trace.cotangents))
    matched = match_kernel(mlp, silent, adam_kernel(mlp, silent), Matching())
    assert matched.input_scale is not None
    assert torch.equal(matched.input_scale, torch.ones(12))


@every_layout
@every_seed
def test_refit_is_the_least_squares_solution(layout, seed):
    mlp = make_mlp(seed=seed, **layout)
    calibration = Calibration(trace_of(mlp, seed, 60)).with_targets(mlp)
    kept = select_neurons(mlp, torch.arange(5))
    fitted = refit_down(kept, calibration.trace.inputs, calibration.targets_of(mlp), 1e-12)
    best = (forward(fitted, calibration.trace.inputs) - calibration.targets_of(mlp)).square().sum()
    assert best < (forward(kept, calibration.trace.inputs) - calibration.targets_of(mlp)).square().sum()
    for shift in (1e-3, -1e-3):
        moved = replace(fitted, down=fitted.down + shift * torch.randn_like(fitted.down))
        assert best < (forward(moved, calibration.trace.inputs) - calibration.targets_of(mlp)).square().sum()


@every_layout
@every_seed
def test_a_weighted_refit_is_the_least_squares_solution_of_the_weighted_errors(layout, seed):
    mlp = make_mlp(seed=seed, **layout)
    calibration = weighted(mlp, trace_of(mlp, seed, 60))
    kept, inputs = select_neurons(mlp, torch.arange(5)), calibration.trace.inputs
    assert calibration.weights is not None
    fitted = refit_down(kept, inputs, calibration.targets_of(mlp), 1e-12, calibration.weights)
    residual = (forward(fitted, inputs) - calibration.targets_of(mlp)) * calibration.weights[:, None]
    columns = hidden_activations(fitted, inputs)
    if fitted.down_bias is not None:
        columns = torch.cat([columns, torch.ones_like(columns[:, :1])], dim=1)
    normal = (columns * calibration.weights[:, None]).T @ residual  # zero where the weighted errors are least
    assert float(normal.abs().max()) < 1e-6 * float(columns.norm() * calibration.targets_of(mlp).norm())


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("own_targets", [True, False])
@every_layout
@every_seed
def test_a_refit_from_the_moments_of_the_whole_block_is_that_of_the_part(with_weights, own_targets, layout, seed):
    mlp, chosen = make_mlp(seed=seed, **layout), torch.tensor([1, 2, 5, 7])
    calibration = weighted(mlp, trace_of(mlp, seed, 60))
    inputs, weights = calibration.trace.inputs, calibration.weights if with_weights else None
    targets = calibration.targets_of(mlp) + (0 if own_targets else torch.randn_like(inputs))
    expected = refit_down(select_neurons(mlp, chosen), inputs, targets, 0.1, weights)
    found = moments(mlp, inputs, weights, None if own_targets else targets)
    assert (found.missing is None) == own_targets
    for name, tensor in refit_part(mlp, chosen, found, 0.1).tensors().items():
        torch.testing.assert_close(tensor, expected.tensors()[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("num_samples", "tokens", "num_held"), [(64, 128, 6), (256, 17, 25), (40, 5, 0), (9, 999, 0)])
def test_a_tenth_of_the_samples_is_held_out_if_it_has_tokens_enough_to_judge_by(num_samples, tokens, num_held):
    inputs = torch.arange(num_samples, dtype=torch.float32).repeat_interleave(tokens)[:, None]
    whole = Calibration(BlockTrace(inputs, torch.zeros_like(inputs), torch.full((num_samples,), tokens)))
    fit, held_out = split_samples(whole, torch.Generator().manual_seed(0))
    seen, judged = ({int(x) for x in part.trace.inputs} for part in (fit, held_out))
    assert seen | judged == set(range(num_samples))
    assert (len(judged), len(seen)) == ((num_held, num_samples - num_held) if num_held else (num_samples,) * 2)


@pytest.mark.parametrize("choice", ["energy", "cholesky"])
@every_seed
def test_even_weights_change_nothing(choice, seed):
    mlp = make_mlp(24, 6, seed=seed)
    plain = Calibration(trace_of(mlp, seed, 60)).with_targets(mlp)
    even = replace(plain, weights=token_weights(plain.trace.cotangents, 0.0))
    config = NTKMatch(choice=choice, refine_epochs=3, match="none")
    one, other = (narrow(mlp, 6, config, torch.Generator().manual_seed(seed), c).mlp for c in (plain, even))
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@every_seed
def test_weights_follow_the_gradients_and_are_chosen_with_the_samples(seed):
    mlp = make_mlp(seed=seed)
    trace = trace_of(mlp, seed)
    trace = replace(trace, cotangents=trace.cotangents * (torch.arange(trace.num_tokens) % 3 == 0)[:, None])
    weights, squares = token_weights(trace.cotangents, 0.75), trace.cotangents.square().sum(1)
    torch.testing.assert_close(weights.square(), 0.25 + 0.75 * squares / squares.mean())
    assert float(weights.square().mean()) == pytest.approx(1)
    assert float(weights.min()) == pytest.approx(0.5)
    chosen = Calibration(trace, weights=weights).with_targets(mlp).select(torch.tensor([3, 1]))
    assert chosen.weights is not None
    assert torch.equal(chosen.weights, weights[trace.token_indices(torch.tensor([3, 1]))])
    assert torch.equal(token_weights(torch.zeros_like(trace.cotangents)), torch.ones_like(weights))


@pytest.mark.parametrize("choice", ["energy", "cholesky"])
@every_layout
@every_seed
def test_a_token_with_gradients_counts_as_if_it_were_there_more_often(choice, layout, seed):
    mlp, generator, size = make_mlp(24, 6, seed=seed, **layout), torch.Generator().manual_seed(seed), 3
    inputs = torch.randn(60, size, 6, generator=generator, dtype=torch.float64)
    cotangents = torch.zeros_like(inputs)
    cotangents[:, 0, 0] = 1
    often = torch.cat([inputs[:, :1]] * (9 * size) + [inputs], dim=1)  # of the square 0.1 for all, 0.9 for the first
    weights = token_weights(cotangents.flatten(0, 1), 0.9)
    config, smalls = NTKMatch(choice=choice, refine_epochs=0, match="none"), []
    for tokens, weight in ((inputs, weights), (often, None)):
        flat = tokens.flatten(0, 1)
        trace = BlockTrace(flat, torch.zeros_like(flat), torch.full((60,), tokens.shape[1]))
        smalls.append(
            narrow(mlp, 6, config, torch.Generator(), Calibration(trace, weights=weight).with_targets(mlp)).mlp
        )
    for name, tensor in smalls[0].tensors().items():
        torch.testing.assert_close(tensor, smalls[1].tensors()[name], rtol=1e-6, atol=1e-8)


@every_layout
@every_seed
def test_in_the_refinement_an_error_counts_as_often_as_its_weight_says(layout, seed):
    mlp = make_mlp(24, 6, seed=seed, **layout)
    plain = Calibration(trace_of(mlp, seed, 30)).with_targets(mlp)
    weights = 1.0 + 2 * (torch.arange(plain.trace.num_tokens) % 4 == 0).double()
    often = torch.arange(plain.trace.num_tokens).repeat_interleave(weights.long())
    inputs = plain.trace.inputs[often]
    repeated = Calibration(BlockTrace(inputs, torch.zeros_like(inputs), torch.ones(len(often)).long())).with_targets(
        mlp
    )
    kept, smalls = select_neurons(mlp, torch.arange(6)), []
    for calibration in (replace(plain, weights=weights), repeated):
        assert calibration.trace.num_tokens <= Refinement(20).batch_tokens  # all of them in every step
        smalls.append(
            refine_weights(kept, calibration, calibration, Refinement(20), torch.Generator().manual_seed(seed))
        )
        assert output_error(smalls[-1], calibration) < output_error(kept, calibration)
    for name, tensor in smalls[0].tensors().items():
        torch.testing.assert_close(tensor, smalls[1].tensors()[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("refinement", "steps"), [(Refinement(3, max_steps=5, batch_tokens=16), 5), (Refinement(1), 1)]
)
def test_the_refinement_ends_after_its_steps(refinement, steps, monkeypatch):
    mlp, taken = make_mlp(12, 6), []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (taken.append(1), step(self)))
    calibration = Calibration(trace_of(mlp, 0, 60)).with_targets(mlp)
    refine_weights(mlp, calibration, calibration, refinement, torch.Generator().manual_seed(0))
    assert len(taken) == steps == refinement.num_steps(calibration.trace.num_tokens)


@every_seed
def test_each_part_lowers_the_output_error_on_the_calibration(seed):
    mlp = make_mlp(24, 6, seed=seed)
    calibration = Calibration(trace_of(mlp, seed, 60)).with_targets(mlp)
    parts = {"refit": False, "refine_epochs": 0, "match": "none"}
    errors = []
    for change in ({}, {"refit": True}, {"refit": True, "refine_epochs": 20}):
        config = method_from_name("ntk-match", parts | change)
        small = narrow(mlp, 6, config, torch.Generator().manual_seed(seed), calibration).mlp
        errors.append(output_error(small, calibration))
    assert errors[2] <= errors[1] < errors[0]


@pytest.mark.parametrize("choice", CHOICES)
def test_duplicates_are_chosen_once_where_the_choice_sees_them(choice):
    half = make_mlp(4)
    tensors = {name: torch.cat([tensor] * 2) for name, tensor in half.tensors().items() if "down" not in name}
    twice = replace(half, **tensors, down=torch.cat([half.down, half.down], dim=1))
    small = run(twice, 4, replace(NOTHING, choice=choice))
    distinct = len({tuple(row) for row in small.up.tolist()})
    assert distinct == 4 or choice == "energy"


@every_layout
def test_folding_keeps_the_output(layout):
    matched = run(make_mlp(**layout), 5, NTKMatch())
    folded, x = fold(matched), trace_of(matched, 4).inputs
    assert folded.input_scale is None
    assert folded.output_scale is None
    torch.testing.assert_close(forward(folded, x), forward(matched, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "best"}, "`choice` of ntk-match must be one of energy, cholesky, fusion, got 'best'"),
        ({"ridge": 0.0}, "`ridge` of ntk-match must be above 0, got 0.0"),
        ({"match": "all"}, "`match` of ntk-match must be one of neuron, layer, none, got 'all'"),
        ({"match_samples": 0}, "`match_samples` of ntk-match must be at least 1, got 0"),
        ({"match_ridge": -1.0}, "`match_ridge` of ntk-match must be above 0, got -1.0"),
        ({"refine_epochs": -1}, "`refine_epochs` of ntk-match must be at least 0, got -1"),
        ({"refine_rate": 0.0}, "`refine_rate` of ntk-match must be above 0, got 0.0"),
        ({"pooling": "cls"}, "`pooling` of ntk-match must be one of mean, first, last, got 'cls'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace(".", "\\.")):
        method_from_name("ntk-match", options)
