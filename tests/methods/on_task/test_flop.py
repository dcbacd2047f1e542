"""FLOP: the expected size meets its target, the ranks add up, the gates end in the factors."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from edit_key import change_key
from pico import pico_model, pico_outputs
from task_job import HALF, make_job
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.low_rank import LowRankLinear
from mlpfusion.kinds.outcome import LowRank
from mlpfusion.kinds.table import install
from mlpfusion.methods.on_task import flop
from mlpfusion.methods.on_task.flop import (
    FLOP,
    Constraint,
    GatedMatrix,
    folded,
    insert_gates,
    largest_gates,
    train_factors,
)
from mlpfusion.methods.on_task.hard_concrete import HardConcrete
from mlpfusion.sites.sites import base_model, linear_maps

CONFIG = FLOP(epochs=10, batch_size=8, learning_rate=1e-3)


def flat(gated: list[dict[str, GatedMatrix]]) -> list[GatedMatrix]:
    return [one for block in gated for one in block.values()]


@pytest.mark.parametrize(("name", "keep_ratio"), [("bert", 0.25), ("modernbert", 0.5)])
def test_the_expected_size_meets_its_target_and_the_objective_falls(name, keep_ratio):
    job = make_job(name, keep_ratio)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        matrices = flat(insert_gates(job))
        objective = train_factors(job, matrices, CONFIG)
    expected = float(Constraint(matrices, 1.0).expected_size().detach())
    assert expected == pytest.approx(keep_ratio, rel=0.02)
    assert sum(objective[-20:]) < sum(objective[:20])


def test_the_objective_is_the_lagrangian_and_its_multipliers_ascend():
    gates = [HardConcrete(torch.zeros(4)), HardConcrete(torch.zeros(2))]
    matrices = [GatedMatrix(torch.nn.Linear(4, 6), torch.nn.Linear(5, 4), gates[0])]
    matrices += [GatedMatrix(torch.nn.Linear(2, 3), torch.nn.Linear(5, 2), gates[1])]
    constraint = Constraint(matrices, 0.1)
    probability = 1 / (1 + torch.exp(torch.tensor(-2.3979)))  # log(1.1 / 0.1)
    expected = probability * (4 * 11 + 2 * 8) / (30 + 15)
    assert float(constraint.expected_size().detach()) == pytest.approx(float(expected), rel=1e-4)
    assert constraint.add_gradients(0.5) == 0.0  # the multipliers start at 0
    first, second = constraint.multipliers.detach().clone()
    assert (first, second) == (pytest.approx(0.1), pytest.approx(0.1))  # Adam's first step
    excess = 100 * (float(expected) - 0.5)
    assert constraint.add_gradients(0.5) == pytest.approx(float(first * excess + second * excess**2), rel=1e-4)
    gradients: Any = [gate.log_alpha.grad for gate in gates]
    assert all((gradient > 0).all() for gradient in gradients)  # towards fewer open gates
    below = Constraint(matrices, 0.1)
    below.add_gradients(2.0)
    assert float(below.multipliers[0].detach()) < 0


def test_only_factors_gates_and_head_are_trained():
    job = make_job()
    before = {name: value.clone() for name, value in job.model.named_parameters()}
    flop.compress(job, FLOP(batch_size=8))
    after = dict(job.model.named_parameters())
    trained = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    trained |= {name for name in after if name not in before and not name.endswith("left.bias")}
    biases = {name for name in after if name.endswith("left.bias")}
    assert all(torch.equal(after[name], before[re.sub(r"parts.0.left.", "", name)]) for name in biases)
    assert trained == {name for name, value in after.items() if value.requires_grad}
    inside = ("right.weight", "left.weight", "gate.log_alpha", "classifier.weight", "classifier.bias")
    assert all(name.endswith(inside) for name in trained)
    assert len(trained) == 2 * 2 * 3 + 2


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_the_factors_handed_back_are_the_gated_model_itself(name):
    """All ranks kept: in float64 what is installed computes what the model of the job computes, gates and all."""
    job = make_job(name, dtype=torch.float64)
    gated = insert_gates(job)
    generator = torch.Generator().manual_seed(3)
    for one in flat(gated):
        with torch.no_grad():
            one.gate.log_alpha.add_(torch.randn(one.gate.log_alpha.shape, generator=generator))
    expected = pico_outputs(job.model.eval(), name)
    fresh = make_job(name, dtype=torch.float64)
    for site, block in zip(fresh.sites, gated, strict=True):
        everything = {n: folded(one, torch.arange(len(one.gate.log_alpha))) for n, one in block.items()}
        install(fresh.model, site, LowRank(everything))
    torch.testing.assert_close(pico_outputs(fresh.model, name), expected, rtol=1e-10, atol=1e-12)


def test_training_starts_from_the_best_factors_of_the_neutral_rank():
    job = make_job()
    weight = job.model.get_parameter("bert.encoder.layer.1.intermediate.dense.weight").detach().clone()
    one = insert_gates(job)[0]["up"]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = 32 * 56 // (32 + 56)
    torch.testing.assert_close(
        one.left.weight @ one.right.weight, left[:, :rank] * values[:rank] @ right[:rank], atol=1e-5, rtol=1e-4
    )
    assert float(one.gate.log_alpha.detach().abs().max()) < 0.06
    assert float(Constraint([one], 1.0).expected_size().detach()) == pytest.approx(
        0.9167 * rank * (32 + 56) / (32 * 56), rel=1e-2
    )


def test_gates_are_open_as_often_as_they_say():
    gate = HardConcrete(torch.linspace(-4, 3, 8))
    draws = torch.stack([gate.sample() for _ in range(4000)])
    assert ((draws >= 0) & (draws <= 1)).all()
    torch.testing.assert_close((draws != 0).float().mean(0), gate.open_probability().detach(), atol=0.03, rtol=0)
    assert bool((draws == 1).any())
    assert bool((draws == 0).any())
    x = torch.ones(2, 8)
    assert torch.equal(gate.eval()(x), gate.settled() * x)
    assert torch.equal(gate.settled().argsort(), torch.arange(8))


def test_the_largest_gates_stay_but_one_in_every_matrix():
    def matrix(rows: int, *log_alpha: float) -> GatedMatrix:
        rank = len(log_alpha)
        return GatedMatrix(torch.nn.Linear(rank, rows), torch.nn.Linear(4, rank), HardConcrete(torch.tensor(log_alpha)))

    matrices = [matrix(6, 5.0, 1.0, 4.0), matrix(6, -9.0, -3.0, -8.0), matrix(8, 0.0, 2.0), matrix(6, 4.0, 4.0, 3.0)]
    kept = [part.tolist() for part in largest_gates(matrices, [1, 1, 1, 2])]
    assert kept == [[0, 2], [1], [1], [0]]  # of the fours the first two; the block of another size for itself


def test_ranks_differ_and_the_checkpoint_says_so(tmp_path):
    model: Any = pico_model("bert", AutoModelForSequenceClassification)
    record = mlpfusion.compress(model, FLOP(batch_size=8, learning_rate=1e-3), data=HALF, keep_ratio=0.25)
    ranks = [site.rank for site in record.sites]
    assert all(isinstance(rank, dict) and rank.keys() == {"up", "down"} for rank in ranks)
    assert sum(sum(rank.values()) for rank in ranks if isinstance(rank, dict)) == 6 * 5
    assert dataclasses.asdict(record)["sites"][0]["rank"] == model.config.mlp_fusion["sites"]["encoder.layer.0"]["rank"]
    assert record.sites[0].size().startswith("rank ")
    for path, site in model.config.mlp_fusion["sites"].items():
        linear = base_model(model).get_submodule(f"{path}.intermediate.dense")
        assert isinstance(linear, LowRankLinear)
        assert linear.ranks() == (site["rank"]["up"],)
    model.save_pretrained(tmp_path)
    good = (tmp_path / "config.json").read_text()
    number = ranks[0]["up"] if isinstance(ranks[0], dict) else 0
    down = ranks[0]["down"] if isinstance(ranks[0], dict) else 0
    for rank, message in [
        ({"up": 0, "down": down}, "rank.up` must be a whole number of at least 1, got 0"),
        ({"up": 40, "down": down}, "wants rank 40 at encoder.layer.0, the config allows at most 32"),
        ({"gate": 3, "down": down}, "must have ranks for up, down at encoder.layer.0, got .*gate"),
        ({"left": 3, "down": down}, "rank` must have the names of matrices, got .*left"),
        ({"up": number + 1, "down": down}, "wants .* parameters at encoder.layer.0"),
    ]:
        (tmp_path / "config.json").write_text(good)
        change_key(tmp_path, lambda key, rank=rank: key["sites"]["encoder.layer.0"].update(rank=rank))
        with pytest.raises(InputError, match=message):
            type(model).from_pretrained(tmp_path)


def test_gate_and_up_in_one_map_have_ranks_of_their_own():
    model: Any = pico_model("modernbert", AutoModelForSequenceClassification)
    mlpfusion.compress(model, FLOP(batch_size=8, learning_rate=1e-3), data=HALF, keep_ratio=0.5)
    for path, site in model.config.mlp_fusion["sites"].items():
        linear = base_model(model).get_submodule(f"{path}.mlp.Wi")
        assert isinstance(linear, LowRankLinear)
        rank = site["rank"]
        assert linear.ranks() == ((rank["gate"], rank["up"]) if isinstance(rank, dict) else (rank, rank))


@pytest.mark.parametrize("field", ["gate_learning_rate", "multiplier_learning_rate"])
def test_options_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=f"`{field}` must be above 0, got 0.0"):
        dataclasses.replace(FLOP(), **{field: 0.0})


def test_linear_maps_of_a_site_are_in_the_order_of_its_matrices():
    for name in ("bert", "llama", "modernbert"):
        job = make_job(name)
        names = [n for names in linear_maps(job.sites[0]).values() for n in names]
        assert set(insert_gates(job)[0]) == set(names)
