"""LTH: what is pruned was trained, what is kept was not; the masks are nested."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from blocks import mask
from pico import pico_model
from task_job import HALF, make_job
from transformers import AutoModelForSequenceClassification

from mlpfusion.data.encode import EncodedExamples, EncodedTask
from mlpfusion.loop.steps import training_batches
from mlpfusion.measure.dynamics import Dynamics
from mlpfusion.methods.data_free.magnitude import Magnitude
from mlpfusion.methods.on_task import lth
from mlpfusion.methods.on_task.job import TaskJob
from mlpfusion.methods.on_task.lth import LTH
from mlpfusion.mlp import clone
from mlpfusion.sites.sites import base_model, read_mlp

CONFIG = LTH(learning_rate=5e-3, batch_size=8, rounds=3)


def masks(outcomes: list[Any]) -> list[torch.Tensor]:
    return [matrix != 0 for outcome in outcomes for matrix in outcome.mlp.matrices().values()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_everything_but_the_head_is_rewound_to_the_pretrained_weights(name):
    job: Any = make_job(name)
    start = {key: value.clone() for key, value in job.model.state_dict().items()}
    outcomes: Any = lth.compress(job, CONFIG)
    pruned = {
        part.data_ptr() for site in job.sites for part in read_mlp(job.model, site).matrices().values()
    }  # where the working copy holds them
    after = base_model(job.model).state_dict()
    for key, value in after.items():
        original = start[f"{job.model.base_model_prefix}.{key}"]
        kept = value != 0 if value.data_ptr() in pruned else torch.ones_like(value, dtype=torch.bool)
        assert torch.equal(value[kept], original[kept]), key
    heads = [key for key in start if not key.startswith(job.model.base_model_prefix)]
    assert heads
    assert all(not torch.equal(job.model.state_dict()[key], start[key]) for key in heads)
    fresh = make_job(name)
    for site, outcome in zip(job.sites, outcomes, strict=True):
        for field, tensor in read_mlp(fresh.model, site).tensors().items():
            kept = getattr(outcome.mlp, field)
            assert torch.equal(kept[kept != 0], tensor[kept != 0])


def test_the_masks_are_nested_on_a_geometric_schedule(monkeypatch):
    seen: list[list[torch.Tensor]] = []
    original = lth.best_masks

    def watch(scores: Any, keep_ratio: float) -> Any:
        found = original(scores, keep_ratio)
        seen.append([part for block in found for part in block.values()])
        return found

    monkeypatch.setattr(lth, "best_masks", watch)
    outcomes = lth.compress(make_job(), CONFIG)
    shares = [sum(int(part.sum()) for part in kept) / sum(part.numel() for part in kept) for kept in seen]
    assert shares == pytest.approx([0.25 ** (k / 3) for k in (1, 2, 3)], abs=1e-4)
    for before, after in pairwise(seen):
        assert all((~b & a).sum() == 0 for b, a in zip(before, after, strict=True))
    assert equal(masks(outcomes), seen[-1])


def test_it_is_the_plain_procedure():
    """Two rounds, written out: train, prune the smallest, back to the start under the mask, train again, prune."""
    config = LTH(learning_rate=5e-3, batch_size=8, rounds=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outcomes = lth.compress(make_job(), config)
    job = make_job()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = _plain(job, config)
    assert equal(masks(outcomes), expected)


def _plain(job: TaskJob, config: LTH) -> list[torch.Tensor]:
    model: Any = job.model.train()
    layers = [model.bert.encoder.layer[index] for index in (1, 2)]
    weights = [weight for layer in layers for weight in (layer.intermediate.dense.weight, layer.output.dense.weight)]
    start = {name: value.clone() for name, value in model.bert.state_dict().items()}
    kept = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    order = Dynamics(12, config.learning_rate, config.batch_size, seed=0)
    batches = list(
        training_batches(
            job.data.train, job.data.collate, steps=order.steps, batch_size=order.batch_size, seed=order.seed
        )
    )
    for round_, batches_of_round in enumerate((batches[:6], batches[6:]), start=1):
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True
        )
        for parts in batches_of_round:
            optimizer.zero_grad()
            for part in parts:
                (model(**part).loss * len(part["labels"]) / 8).backward()
            for weight, part in zip(weights, kept, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(part)
            optimizer.step()
        flat = torch.cat([w.detach().abs().masked_fill(~k, -1).flatten() for w, k in zip(weights, kept, strict=True)])
        number = round((1 - 0.25 ** (round_ / 2)) * len(flat))
        left = torch.ones_like(flat, dtype=torch.bool)
        left[flat.argsort(stable=True)[:number]] = False
        kept = [p.view_as(w) for p, w in zip(left.split([w.numel() for w in weights]), weights, strict=True)]
        model.bert.load_state_dict(start)
        with torch.no_grad():
            for weight, part in zip(weights, kept, strict=True):
                weight.mul_(part)
    return kept


def test_the_mask_depends_on_the_data_and_is_not_that_of_one_shot_magnitude():
    found = masks(lth.compress(make_job(), CONFIG))
    flipped = EncodedExamples([item | {"labels": 1 - item["labels"]} for item in HALF.train.items])
    other = make_job(data=EncodedTask(HALF.task, flipped, {}, "", HALF.collate))
    assert not equal(found, masks(lth.compress(other, CONFIG)))
    model = pico_model("bert", AutoModelForSequenceClassification)
    mlps = [clone(read_mlp(model, site)) for site in make_job().sites]
    assert not equal(found, masks(mask(mlps, 0.25, Magnitude(), [torch.Generator()] * len(mlps))))
    for number in (0, 1):  # with steps too small to change the order it is
        still = LTH(learning_rate=1e-12, batch_size=8, rounds=1 + number)
        assert equal(
            masks(lth.compress(make_job(), still)),
            masks(mask(mlps, 0.25, Magnitude(), [torch.Generator()] * len(mlps))),
        )


def test_every_round_has_a_step_even_with_little_data():
    few = EncodedTask(HALF.task, HALF.train.subset([0, 1]), {}, "", HALF.collate)
    assert lth.compress(make_job(data=few), LTH(rounds=4))
    with pytest.raises(ValueError, match="`rounds` must be at least 1, got 0"):
        LTH(rounds=0)
