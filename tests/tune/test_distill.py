"""Layer-wise tuning is Eq. 6 and moves nothing else; distillation lowers its loss on what it was not trained on."""

import copy
from typing import Any

import pytest
import torch
from pico import pico_model, sites_of
from tiny_task import sentences, tiny_tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DataCollatorWithPadding, T5Config

import mlpfusion
from mlpfusion.data.encode import EncodedExamples, encode_texts
from mlpfusion.errors import InputError
from mlpfusion.sites.sites import base_model, site_parameters
from mlpfusion.tune.distill import Distill, distill, logits_divergence, make_loss
from mlpfusion.tune.layerwise import layer_states, layerwise_loss, only_blocks_trained
from mlpfusion.tune.teacher import Teacher, cache_states, model_sha256

FAST = Distill(learning_rate=2e-3, batch_size=8, epochs=2, device="cpu", holdout=0.2)
COLLATE = DataCollatorWithPadding(tiny_tokenizer())


def texts(count: int, seed: int, *, pairs: bool = False) -> EncodedExamples:
    first, second = sentences(count, seed)[0], sentences(count, seed + 100)[0]
    rows = list(zip(first, second, strict=True)) if pairs else [(text,) for text in first]
    return encode_texts(rows, tiny_tokenizer(), max_length=32)


def pair(name: str = "bert", auto_class: Any = None, method: Any = None) -> tuple[Any, Any]:
    """The original and what it was compressed to."""
    teacher = pico_model(name) if auto_class is None else pico_model(name, auto_class)
    student = copy.deepcopy(teacher)
    mlpfusion.compress(student, method or mlpfusion.Fusion(), layers="last:2", keep_ratio=0.25)
    return teacher, student


def block_parameters(model: Any) -> set[str]:
    base = base_model(model)
    sites = sites_of(model)
    wanted = {id(value) for site in sites if site.layer >= 1 for value in site_parameters(base, site)}
    return {name for name, value in model.named_parameters() if id(value) in wanted}


def batch_of(examples: EncodedExamples, padding: int = 0) -> dict[str, torch.Tensor]:
    batch = dict(COLLATE([examples[number] for number in range(len(examples))]))
    return {name: F.pad(tensor, (0, padding)) for name, tensor in batch.items()}


def loss_of(teacher: Any, student: Any, batch: Any) -> float:
    with torch.no_grad():
        return float(make_loss(Teacher(teacher), student, FAST)(base_model(student), batch))


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "bart", "gpt2"])
def test_the_loss_is_the_sum_over_layers_of_the_mean_square(name):
    """By hand: one sentence at a time, so that there is no padding at all."""
    teacher, student = (base_model(model) for model in pair(name))
    examples = texts(6, 0)
    batch = batch_of(examples)
    found = loss_of(teacher, student, batch)
    sums = None
    for number in range(len(examples)):
        one = {key: torch.tensor([value]) for key, value in examples[number].items()}
        if name in ("t5", "bart"):
            start = torch.full((1, 1), teacher.config.decoder_start_token_id)
            one["decoder_input_ids"] = torch.cat([start, one["input_ids"][:, :-1]], 1)
        with torch.no_grad():
            outputs = [model(**one, output_hidden_states=True) for model in (teacher, student)]
        keys = [key for key in ("encoder_hidden_states", "decoder_hidden_states", "hidden_states") if key in outputs[0]]
        squares = [
            (a - b).square().mean(-1).sum()
            for key in keys
            for a, b in zip(outputs[0][key][1:], outputs[1][key][1:], strict=True)
        ]
        sums = torch.stack(squares) if sums is None else sums + torch.stack(squares)
    assert sums is not None
    assert len(sums) == (6 if name in ("t5", "bart") else 3)
    assert sums[0] == 0
    assert found == pytest.approx(float(sums.sum()) / sum(examples.lengths), rel=1e-4)
    assert found > 0
    assert loss_of(teacher, teacher, batch) == 0


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_loss_does_not_depend_on_the_padding(name):
    teacher, student = pair(name)
    examples = texts(5, 1)
    losses = [loss_of(teacher, student, batch_of(examples, padding)) for padding in (0, 7)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("pairs", [False, True])
def test_layerwise_tuning_lowers_the_loss_and_moves_the_blocks_only(seed, pairs):
    teacher, student = pair()
    before, original = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    config = Distill(**{**FAST.__dict__, "seed": seed})
    run = distill(student, teacher, texts(80, seed, pairs=pairs), COLLATE, config)
    assert run.loss_after < 0.95 * run.loss_before
    assert (run.train_samples, run.held_out_samples, run.steps) == (64, 16, 16)
    moved = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == block_parameters(student)
    assert len([name for name in moved if name.endswith("bias")]) == 4
    assert all(torch.equal(value, original[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.requires_grad for parameter in student.parameters())
    fresh = batch_of(texts(30, 50 + seed, pairs=pairs))
    unturned = copy.deepcopy(student)
    unturned.load_state_dict(before)
    assert loss_of(teacher, student, fresh) < loss_of(teacher, unturned, fresh)


@pytest.mark.parametrize("method", [mlpfusion.SVD(), mlpfusion.Magnitude(), mlpfusion.Clustering()])
def test_every_kind_is_tuned_layer_by_layer(method):
    teacher, student = pair(method=method)
    zeros = {name: value == 0 for name, value in student.named_parameters() if "dense.weight" in name}
    run = distill(student, teacher, texts(80, 0), COLLATE, FAST)
    assert run.loss_after < run.loss_before
    values = dict(student.named_parameters())
    if isinstance(method, mlpfusion.Magnitude):
        assert all((values[name][zero] == 0).all() for name, zero in zeros.items())


def test_a_parameter_that_moves_outside_the_blocks_is_noticed():
    _, student = pair()
    message = "outside the compressed blocks moved"
    with pytest.raises(AssertionError, match=message), only_blocks_trained(student), torch.no_grad():
        student.embeddings.LayerNorm.bias[0] += 1


def test_cached_states_are_those_of_the_teacher_and_stale_ones_are_not_read(tmp_path):
    teacher, _ = pair()
    examples = texts(40, 0)
    cached = cache_states(teacher, examples, COLLATE, tmp_path)
    numbers = [7, 3, 31]
    batch = dict(COLLATE([examples[number] | {"index": number} for number in numbers]))
    for found, expected in zip(cached.states(batch), Teacher(teacher).states(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    stamp = cached.file.stat().st_mtime_ns
    assert cache_states(teacher, examples, COLLATE, tmp_path).file.stat().st_mtime_ns == stamp
    assert cache_states(teacher, examples.subset(range(39)), COLLATE, tmp_path).file != cached.file
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.encoder.layer[0].output.dense.bias[0] += 1e-3
    assert model_sha256(other) != model_sha256(teacher)
    assert cache_states(other, examples, COLLATE, tmp_path).file != cached.file
    assert len(list(tmp_path.iterdir())) == 3


def test_tuning_with_a_cache_is_the_same_tuning(tmp_path):
    teacher, plain = pair()
    cached = copy.deepcopy(plain)
    runs = [
        distill(student, teacher, texts(40, 0), COLLATE, FAST, cache=cache)
        for student, cache in ((plain, None), (cached, tmp_path))
    ]
    assert runs[0].loss_after == pytest.approx(runs[1].loss_after, rel=1e-3)
    assert len(list(tmp_path.glob("*/states.npy"))) == 1


def test_the_same_seed_gives_the_same_bytes():
    results = []
    for _ in range(2):
        teacher, student = pair()
        distill(student, teacher, texts(40, 0), COLLATE, FAST)
        results.append(student.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("objective", ["hidden", "logits", "logits+hidden"])
@pytest.mark.parametrize("auto_class", [AutoModelForSequenceClassification, AutoModelForCausalLM])
def test_ordinary_distillation_lowers_its_loss(objective, auto_class):
    name = "bert" if auto_class is AutoModelForSequenceClassification else "llama"
    teacher, student = pair(name, auto_class)
    config = Distill(**{**FAST.__dict__, "objective": objective, "learning_rate": 5e-4, "epochs": 4})
    run = distill(student, teacher, texts(80, 0), COLLATE, config)
    assert run.loss_after < run.loss_before


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_of_logits_is_the_textbooks(temperature):
    own, wanted = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p, q = (torch.softmax(one / temperature, -1) for one in (wanted, own))
    expected = temperature**2 * (p * (p / q).log()).sum(-1).mean()
    mask = torch.ones(6, 1)
    assert float(logits_divergence(own, wanted, mask, temperature)) == pytest.approx(float(expected), rel=1e-5)
    tokens = own.view(2, 3, 4), wanted.view(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    keep = mask.reshape(-1).bool()
    expected = temperature**2 * (p * (p / q).log()).sum(-1)[keep].mean()
    assert float(logits_divergence(*tokens, mask, temperature)) == pytest.approx(float(expected), rel=1e-5)


def test_the_wrong_teacher_is_refused():
    teacher, student = pair()
    with pytest.raises(InputError, match="`compressed` must be compressed by mlpfusion, got the student"):
        distill(teacher, teacher, texts(20, 0), COLLATE, FAST)
    with pytest.raises(InputError, match="`original` must be the source of the student, got the teacher, whose MLPs"):
        distill(student, pico_model("bert", seed=1), texts(20, 0), COLLATE, FAST)
    with pytest.raises(InputError, match="`original` must have a head for the objective logits, got BertModel"):
        distill(student, teacher, texts(20, 0), COLLATE, Distill(objective="logits"))
    headed, _ = pair("bert", AutoModelForSequenceClassification)
    with pytest.raises(InputError, match="`compressed` must be a BertForSequenceClassification of 2 outputs, got Bert"):
        distill(student, headed, texts(20, 0), COLLATE, Distill(objective="logits"))
    with pytest.raises(InputError, match="`holdout` must leave examples on both sides, got 0.2 of 1"):
        distill(student, teacher, texts(1, 0), COLLATE, FAST)
    with pytest.raises(
        InputError, match="`objective` must be one of layerwise, hidden, logits, logits.hidden, got 'x'"
    ):
        Distill(objective="x")


def test_states_of_all_layers_are_compared():
    teacher, _ = pair()
    batch = batch_of(texts(3, 0))
    with torch.no_grad():
        _, states = layer_states(teacher, teacher.config, batch)
    visible = int(batch["attention_mask"].sum())
    assert [tuple(state.shape) for state in states] == [(visible, 32)] * 3
    assert float(layerwise_loss(states, [state + 2 for state in states])) == pytest.approx(12, rel=1e-5)


def test_a_decoder_without_a_start_token_is_refused_here_too():
    config = T5Config()
    config.decoder_start_token_id = None
    batch = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(InputError, match="must have a `decoder_start_token_id`, got none"):
        layer_states(torch.nn.Identity(), config, batch)
