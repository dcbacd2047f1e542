"""GEM-MINER: scores are trained, on weights that are not."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from blocks import mask
from task_job import HALF, make_job
from torch.func import functional_call

from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.kinds.table import install
from mlpfusion.methods.data_free.magnitude import Magnitude
from mlpfusion.methods.masking import best_masks
from mlpfusion.methods.on_task import gem_miner
from mlpfusion.methods.on_task.gem_miner import GemMiner, initial_scores
from mlpfusion.mlp import clone
from mlpfusion.sites.sites import base_model, linear_maps, read_mlp

CONFIG = GemMiner(learning_rate=5e-2, batch_size=8)


def masks(outcomes: list[Any]) -> list[torch.Tensor]:
    return [matrix != 0 for outcome in outcomes for matrix in outcome.mlp.matrices().values()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert"])
def test_no_weight_of_the_base_model_is_trained_but_the_head_is(name):
    job = make_job(name)
    before = {key: value.clone() for key, value in job.model.state_dict().items()}
    gem_miner.compress(job, CONFIG)
    base = base_model(job.model).state_dict()
    assert all(torch.equal(value, before[f"{job.model.base_model_prefix}.{key}"]) for key, value in base.items())
    head = [key for key in before if key.removeprefix(f"{job.model.base_model_prefix}.") not in base]
    assert any(not torch.equal(job.model.state_dict()[key], before[key]) for key in head)


def test_scores_start_in_the_order_of_magnitude_and_all_count():
    job = make_job()
    mlps = [clone(read_mlp(job.model, site)) for site in job.sites]
    scores = initial_scores(mlps, 0.5)
    flat = torch.cat([q.flatten() for block in scores for q in block.values()])
    assert float(flat.min()) > 0.5
    assert float(flat.max()) == 1.0
    expected = masks(mask(mlps, 0.3, Magnitude(), [torch.Generator()] * len(mlps)))
    assert equal([part for block in best_masks(scores, 0.3) for part in block.values()], expected)


@pytest.mark.parametrize("name", ["bert", "gpt2", "modernbert"])
def test_the_gradient_of_a_score_goes_straight_through_the_rounding(name):
    job = make_job(name, dtype=torch.float64)
    mlps = [clone(read_mlp(job.model, site)) for site in job.sites]
    generator = torch.Generator().manual_seed(1)
    scores: Any = [
        {n: torch.rand(w.shape, generator=generator, dtype=torch.float64) for n, w in mlp.matrices().items()}
        for mlp in mlps
    ]
    kept: Any = [{n: torch.rand(w.shape, generator=generator) < 0.7 for n, w in mlp.matrices().items()} for mlp in mlps]
    batch = job.data.collate([job.data.train[index] for index in range(6)])
    gem_miner._set_weights(job, mlps, scores, kept)
    job.model(**batch).loss.backward()
    gem_miner._set_gradients(job, mlps, scores, kept, 0.3)

    leaves = [{n: q.clone().requires_grad_() for n, q in block.items()} for block in scores]
    weights: dict[str, Any] = dict(job.model.named_parameters())
    paths = {id(parameter): key for key, parameter in weights.items()}
    replaced: dict[str, Any] = {}
    for site, mlp, block, part in zip(job.sites, mlps, leaves, kept, strict=True):
        effective = {n: getattr(mlp, n) * (q + (q.detach().round() - q.detach())) * part[n] for n, q in block.items()}
        base = base_model(job.model)
        for path, names in linear_maps(site).items():
            parameter = base.get_submodule(path).weight
            whole = torch.cat([effective[n] for n in names])
            replaced[paths[id(parameter)]] = whole if whole.shape == parameter.shape and name != "gpt2" else whole.T
    loss = functional_call(job.model, weights | replaced, kwargs=dict(batch)).loss
    (
        loss + 0.3 * sum((q.square() * p[n]).sum() for b, p in zip(leaves, kept, strict=True) for n, q in b.items())
    ).backward()
    for block, leaf in zip(scores, leaves, strict=True):
        for n, q in block.items():
            torch.testing.assert_close(q.grad, leaf[n].grad, rtol=1e-9, atol=1e-12)


def test_the_mask_follows_the_data_and_not_the_magnitude_alone():
    found = masks(gem_miner.compress(make_job(), CONFIG))
    flipped = EncodedExamples([item | {"labels": 1 - item["labels"]} for item in HALF.train.items])
    other = make_job(data=EncodedTask(HALF.task, flipped, {}, "", HALF.collate))
    assert not equal(found, masks(gem_miner.compress(other, CONFIG)))
    job = make_job()
    mlps = [clone(read_mlp(job.model, site)) for site in job.sites]
    expected = masks(mask(mlps, 0.25, Magnitude(), [torch.Generator()] * len(mlps)))
    assert not equal(found, expected)
    still = GemMiner(learning_rate=1e-9, batch_size=8, spread=0.5)
    assert equal(masks(gem_miner.compress(make_job(), still)), expected)


@pytest.mark.parametrize("options", [{"learning_rate": 0.9}, {"regularization": 1e4}, {"spread": 1e-9}])
def test_the_density_is_exact_where_scores_tie_or_die(options):
    """Scores at 0 and 1 by the hundred, all below a half, or all alike."""
    config = GemMiner(**{"batch_size": 8, "learning_rate": 5e-2, **options})
    found = masks(gem_miner.compress(make_job(), config))
    total = sum(mask.numel() for mask in found)
    assert sum(int(mask.sum()) for mask in found) == total - round(0.75 * total)


def test_what_is_frozen_stays_frozen_whatever_becomes_of_the_others(monkeypatch):
    """At so high a rate scores that are left fall below those that were frozen before them."""
    seen: list[list[torch.Tensor]] = []
    original = gem_miner.best_masks

    def watch(scores: Any, keep_ratio: float) -> Any:
        found = original(scores, keep_ratio)
        seen.append([part for block in found for part in block.values()])
        return found

    monkeypatch.setattr(gem_miner, "best_masks", watch)
    outcomes = gem_miner.compress(make_job(), GemMiner(learning_rate=0.4, batch_size=8, regularization=1e-2))
    shares = [sum(int(part.sum()) for part in kept) / sum(part.numel() for part in kept) for kept in seen]
    assert shares == pytest.approx([0.25 ** (k / 5) for k in (1, 2, 3, 4, 5)], abs=1e-4)
    for before, after in pairwise(seen):
        assert all((~b & a).sum() == 0 for b, a in zip(before, after, strict=True))
    assert equal(masks(outcomes), seen[-1])


def test_mining_lowers_the_loss_at_the_same_density():
    """On frozen weights, with the head that was trained beside: better than magnitude, which knows no HALF."""
    job, losses = make_job(keep_ratio=0.5), []
    config = GemMiner(epochs=10, learning_rate=5e-2, batch_size=16, head_learning_rate=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mined: Any = gem_miner.compress(job, config)
    mlps = [clone(read_mlp(job.model, site)) for site in job.sites]
    batch = job.data.collate([HALF.train[index] for index in range(96)])
    for outcomes in (mined, mask(mlps, 0.5, Magnitude(), [torch.Generator()] * len(mlps))):
        for site, outcome in zip(job.sites, outcomes, strict=True):
            install(job.model, site, outcome)
        with torch.no_grad():
            losses.append(float(job.model.eval()(**batch).loss))
    assert losses[0] < losses[1]


@pytest.mark.parametrize(
    ("field", "value"), [("rounds", 0), ("head_learning_rate", 0.0), ("regularization", -1.0), ("spread", 0.6)]
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        GemMiner(**{field: value})
