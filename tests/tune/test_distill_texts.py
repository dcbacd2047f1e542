"""Logit distillation where texts are written: at the tokens of the text alone, neither at its source nor at padding."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from command import call, refused
from pico import pico_model
from tiny_task import save_checkpoint, sentences, tiny_tokenizer
from tiny_texts import rows, webnlg_folder, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import mlpfusion
from mlpfusion.data.encode import EncodedExamples, without_labels
from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.data.generation.task import GENERATION
from mlpfusion.data.language.labels import NOT_PREDICTED, PadRight
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task
from mlpfusion.tune.distill import Distill, distill, logits_divergence, make_loss, split_examples
from mlpfusion.tune.teacher import Teacher, cache_states

COLLATE = PadRight(tiny_tokenizer())
LOGITS = Distill(objective="logits", temperature=2.0, batch_size=3, holdout=0.4, device="cpu", learning_rate=1e-3)
BOTH_KINDS = pytest.mark.parametrize(
    ("name", "auto_class"), [("gpt2", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)]
)


def pair(name: str, auto_class: Any) -> tuple[Any, Any]:
    teacher = pico_model(name, auto_class).double()
    student = copy.deepcopy(teacher)
    mlpfusion.compress(student, mlpfusion.Fusion(), keep_ratio=0.25)
    return teacher, student


def examples(config: Any, count: int = 12) -> EncodedExamples:
    entries = tuple(Entry(row["source"], (row["target"],)) for row in rows(count))
    data = TaskData(GENERATION["generation"], GenerationExamples(entries), {}, "made up")
    return encode_task(data, tiny_tokenizer(), config).train


@torch.no_grad()
def text_logits(model: Any, item: dict[str, Any]) -> Tensor:
    """Logits that predict the text of one example, which stands alone, so without padding."""
    ids = torch.tensor([item["input_ids"]])
    if model.config.is_encoder_decoder:
        before = torch.tensor([[model.config.decoder_start_token_id, *item["labels"][:-1]]])
        return model(input_ids=ids, decoder_input_ids=before).logits[0]
    first = item["labels"].count(NOT_PREDICTED)
    return model(input_ids=ids).logits[0, first - 1 : -1]


def by_hand(teacher: Any, student: Any, items: Any) -> float:
    """4 KL(teacher / 2 || student / 2), the mean over all tokens of all texts."""
    total, count = 0.0, 0
    for item in items:
        theirs, ours = ((text_logits(model, item).double() / 2).softmax(1) for model in (teacher, student))
        total += float((theirs * (theirs / ours).log()).sum())
        count += len(theirs)
    return 4 * total / count


def test_the_divergence_of_one_token_in_three():
    """1/2, 1/2 against 3/4, 1/4: ln(4/3) / 2; what the mask leaves out does not count."""
    ours = torch.tensor([[[9.0, 0.0], [math.log(3), 0.0], [0.0, 7.0]]]).double()
    mask = torch.tensor([[False, True, False]])
    found = logits_divergence(ours, torch.zeros(1, 3, 2).double(), mask, temperature=1.0)
    assert float(found) == pytest.approx(math.log(4 / 3) / 2, rel=1e-6)


@BOTH_KINDS
def test_the_loss_is_that_of_the_text_alone(name, auto_class):
    teacher, student = pair(name, auto_class)
    found = examples(teacher.config)
    batch = dict(COLLATE([found[number] for number in range(len(found))]))
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        loss = float(make_loss(Teacher(teacher), student, LOGITS)(student, batch))
    assert loss == pytest.approx(by_hand(teacher, student, found.items), rel=1e-4)  # the loss is fp32
    assert loss > 0


def test_a_causal_head_computes_the_matched_tokens_alone():
    teacher, student = pair("gpt2", AutoModelForCausalLM)
    batch, seen = dict(COLLATE(examples(teacher.config).items)), []
    for model in (teacher, student):
        model.lm_head.register_forward_hook(lambda _head, _inputs, logits: seen.append(logits.shape[:-1].numel()))
    make_loss(Teacher(teacher), student, LOGITS)(student, batch)
    predicted = int((batch["labels"] != NOT_PREDICTED).sum())
    assert 2 * predicted < batch["labels"].numel()
    assert seen == [predicted + 1] * 2  # and one row that stands for no token


@BOTH_KINDS
def test_the_loss_before_is_the_mean_over_the_tokens_held_out(name, auto_class):
    teacher, student = (model.float() for model in pair(name, auto_class))
    found = examples(teacher.config)
    held_out = split_examples(found, LOGITS)[1]
    expected = by_hand(teacher, student, held_out.items)
    run = distill(student, teacher, found, COLLATE, LOGITS)
    assert run.loss_before == pytest.approx(expected, rel=1e-3)
    assert run.loss_after < run.loss_before


def test_cached_states_are_those_of_the_sources_whatever_the_labels(tmp_path):
    teacher, _ = pair("t5", AutoModelForSeq2SeqLM)
    found = examples(teacher.config)
    cached = cache_states(teacher, found, COLLATE, tmp_path)
    batch = dict(COLLATE([item | {"index": number} for number, item in enumerate(without_labels(found).items)]))
    for state, expected in zip(cached.states(batch), Teacher(teacher).states(batch), strict=True):
        torch.testing.assert_close(state.double(), expected, rtol=1e-4, atol=1e-5)


@BOTH_KINDS
def test_own_pairs_are_distilled_from_the_command_line(name, auto_class, tmp_path):
    model, cut = save_checkpoint(tmp_path / "model", name, auto_class), tmp_path / "cut"
    assert call("compress", model, cut, "--keep-ratio", 0.5).exit_code == 0
    files = write_rows(tmp_path, 40)
    flags = [*files[:4], "--objective", "logits", "--learning-rate", "1e-3", "--batch-size", 8, "--device", "cpu"]
    result = call("distill", model, cut, tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/mlp_fusion_distill_record.json").read_text())
    assert record["run"]["loss_after"] < record["run"]["loss_before"]
    assert (record["data"], record["recipe"]["task"]) == ("train.jsonl", "generation")
    auto_class.from_pretrained(tmp_path / "out")


def test_webnlg_is_distilled_with_segments(tmp_path, monkeypatch):
    webnlg_folder(tmp_path, monkeypatch)
    model = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM)
    task = ["--task", "webnlg", "--segment-ids", "--device", "cpu", "--epochs", 1]
    tuned = call("tune", model, tmp_path / "tuned", *task, "--learning-rate", "1e-2", "--max-new-tokens", 2)
    assert tuned.exit_code == 0, tuned.output
    assert call("compress", tmp_path / "tuned", tmp_path / "cut", "--keep-ratio", 0.5).exit_code == 0
    losses = {}
    plain = [flag for flag in task if flag != "--segment-ids"]
    for name, flags in (("with", task), ("without", plain)):
        models = (tmp_path / "tuned", tmp_path / "cut", tmp_path / name)
        result = call("distill", *models, *flags, "--objective", "logits", "--batch-size", 8)
        assert result.exit_code == 0, result.output
        record = json.loads((tmp_path / name / "mlp_fusion_distill_record.json").read_text())
        losses[name] = record["run"]["loss_before"]
    assert abs(losses["with"] / losses["without"] - 1) > 1e-3


def test_plain_texts_are_matched_at_every_token_by_name_or_by_file(tmp_path):
    model, cut = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM), tmp_path / "cut"
    assert call("compress", model, cut, "--keep-ratio", 0.5).exit_code == 0
    (tmp_path / "texts.txt").write_text("\n".join(sentences(80, 0)[0]))
    flags = ["--objective", "logits", "--max-length", 16, "--device", "cpu", "--max-samples", 12, "--batch-size", 4]
    for out, data in (("a", ["--data"]), ("b", ["--task", "language-modelling", "--train"])):
        result = call("distill", model, cut, tmp_path / out, *data, tmp_path / "texts.txt", *flags)
        assert result.exit_code == 0, result.output
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in "ab"]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "exactly one of `--data` and `--task` must be given"),
        (["--data", "a.txt", "--task", "sst2"], "exactly one of `--data` and `--task` must be given"),
        (["--data", "a.txt", "--source-column", "x"], "exactly one of `--data` and `--task` must be given"),
        (["--task", "sst2", "--column", "x"], "`--column` must be left out with `--task`, got 'x'"),
        (["--task", "sst2", "--new-head"], "`--new-head` must be left out: COMPRESSED gets the head of ORIGINAL"),
        (["--task", "generation"], "`--train` must be given for generation"),
        (["--train", "a.jsonl"], "`--task` must be given, or `--train`, `--text-column` and `--label-column`"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, message, tmp_path):
    model = save_checkpoint(tmp_path / "model", "llama", AutoModelForCausalLM)
    assert message in refused("distill", model, model, tmp_path / "out", *flags)
