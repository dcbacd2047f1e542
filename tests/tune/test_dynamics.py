"""Training dynamics: the same batches for all, the distance, what compression must keep while it trains."""

from typing import Any

import pytest
import torch
from pico import pico_model
from tiny_task import tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from mlpfusion import SVD, Fusion, Magnitude, NeuronPruning, compress
from mlpfusion.errors import InputError
from mlpfusion.loop.steps import training_batches
from mlpfusion.measure.dynamics import Dynamics, TrainingPath, distances, lengths, train_path
from mlpfusion.tune.trainer import DivergenceError

SHORT = Dynamics(steps=3, learning_rate=1e-3, batch_size=16)


def classifier(method: Any = None, keep_ratio: float = 0.25, name: str = "bert") -> Any:
    model = pico_model(name, AutoModelForSequenceClassification)
    model.config.pad_token_id = tiny_tokenizer().pad_token_id
    if method is not None:
        compress(model, method, keep_ratio=keep_ratio)
    return model


def run(model: Any, task: Any, config: Dynamics = SHORT) -> TrainingPath:
    return train_path(model, task, task.evaluation["validation"], config)


def seen_in_training(model: Any, task: Any) -> list[torch.Tensor]:
    """The token ids of every forward pass that gets labels."""
    seen = []

    def keep(_module: Any, _args: Any, inputs: dict[str, torch.Tensor]) -> None:
        if "labels" in inputs:
            seen.append(torch.cat([inputs["input_ids"].flatten(), inputs["labels"]]).clone())

    with model.register_forward_pre_hook(keep, with_kwargs=True):
        run(model, task)
    return seen


def test_every_model_gets_the_same_batches(task):
    expected = seen_in_training(classifier(), task)
    assert len(expected) == 3 * 2  # parts of eight
    for method in (Fusion(), SVD(), Magnitude()):
        found = seen_in_training(classifier(method), task)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_the_order_is_that_of_the_seed_and_every_epoch_uses_every_example_once(task):
    def order(seed: int) -> list[tuple[int, ...]]:
        config = Dynamics(steps=12, batch_size=16, seed=seed)
        batches = list(
            training_batches(
                task.train, task.collate, steps=config.steps, batch_size=config.batch_size, seed=config.seed
            )
        )
        assert len(batches) == 12
        assert all(sum(len(part["labels"]) for part in batch) == 16 for batch in batches)
        return [
            tuple(row[mask.bool()].tolist())
            for batch in batches
            for part in batch
            for row, mask in zip(part["input_ids"], part["attention_mask"], strict=True)
        ]

    first, other = order(0), order(1)
    texts = sorted(tuple(item["input_ids"]) for item in task.train.items)
    assert first == order(0)
    assert first != other
    for found in (first, other):
        assert sorted(found[:96]) == sorted(found[96:]) == texts
    assert first[:96] != first[96:]


def test_the_parts_of_a_batch_have_the_gradient_of_the_mean_over_the_batch(task):
    config = Dynamics(steps=1, learning_rate=1e-3, batch_size=19)
    (parts,) = training_batches(
        task.train, task.collate, steps=config.steps, batch_size=config.batch_size, seed=config.seed
    )
    assert [len(part["labels"]) for part in parts] == [8, 8, 3]
    model, whole = classifier().double(), classifier().double()
    path = run(model, task, config)
    examples = [
        {"input_ids": row[mask.bool()].tolist(), "labels": label}
        for part in parts
        for row, mask, label in zip(part["input_ids"], part["attention_mask"], part["labels"].tolist(), strict=True)
    ]
    loss = whole(**task.collate(examples)).loss
    assert path.losses.tolist() == pytest.approx([loss.item()])
    loss.backward()
    torch.optim.AdamW(whole.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0).step()
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_a_run_repeats_bit_by_bit_and_has_no_dropout(task):
    paths = [run(classifier(), task) for _ in range(2)]
    assert torch.equal(paths[0].logits, paths[1].logits)
    assert torch.equal(paths[0].losses, paths[1].losses)
    assert paths[0].logits.shape == (4, 40, 2)  # the beginning, steps 1 and 2, and the last
    config = classifier().config
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.5
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(classifier().state_dict())
    assert torch.equal(run(model.train(), task).logits, paths[0].logits)


def test_measured_are_the_first_steps_every_k_and_the_last():
    assert Dynamics().measured_at() == (1, 2, 5, 10, 25, 50, 75, 100)
    assert Dynamics(steps=7, every=3).measured_at() == (1, 2, 3, 5, 6, 7)
    assert Dynamics(steps=1).measured_at() == (1,)


def path_of(changes: list[list[float]], start: float) -> TrainingPath:
    logits = torch.tensor([[0.0, 0.0], *changes])[:, None] + start
    return TrainingPath(logits, torch.zeros(2), 0.0)


def test_the_distance_is_that_of_the_changes():
    full = path_of([[3.0, 4.0], [0.0, 2.0]], 0.0)
    other = path_of([[0.0, 4.0], [2.0, 0.0]], 7.0)
    assert distances(other, full) == pytest.approx([3 / 5, 2**0.5])
    assert lengths(other, full) == pytest.approx([4 / 5, 1.0])
    assert distances(full, full) == [0, 0]


def test_a_cut_to_the_full_width_is_at_distance_zero(task):
    full = run(classifier(), task)
    same = run(classifier(NeuronPruning(), keep_ratio=1.0), task)
    assert max(distances(same, full)) < 1e-4
    assert min(distances(run(classifier(NeuronPruning(), keep_ratio=0.25), task), full)) > 1e-2


def test_training_keeps_p_and_the_masks_and_moves_the_factors(task):
    fused = classifier(Fusion())
    scales = {name: buffer.clone() for name, buffer in fused.named_buffers() if name.endswith("output_scale")}
    assert scales
    run(fused, task)
    assert all(torch.equal(dict(fused.named_buffers())[name], scale) for name, scale in scales.items())
    masked = classifier(Magnitude())
    zeros = {name: value == 0 for name, value in masked.named_parameters() if (value == 0).float().mean() > 0.5}
    assert zeros
    run(masked, task)
    assert all(torch.equal(dict(masked.named_parameters())[name] == 0, zero) for name, zero in zeros.items())
    factored, before = classifier(SVD()), classifier(SVD())
    run(factored, task)
    assert all((one != other).any() for one, other in zip(factored.parameters(), before.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_the_run(task):
    model = classifier()
    with torch.no_grad():
        model.get_submodule("classifier").weight.fill_(float("inf"))
    with pytest.raises(DivergenceError, match="`learning_rate` must be small enough .* in step 1"):
        run(model, task)


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("learning_rate", 0.0), ("batch_size", 0), ("every", 0), ("seed", -1)]
)
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(InputError, match=f"`{name}` must be .*, got {value}"):
        Dynamics(**{name: value})
