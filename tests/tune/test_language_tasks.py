"""Language modelling as a task: windows of own texts, perplexity, and all that trains on labelled tasks too."""

import gzip
import json

import pytest
import torch
from command import call, refused
from pico import pico_model
from tiny_task import save_checkpoint, sentences, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.language.kind import LanguageModelling
from mlpfusion.data.language.labels import NOT_PREDICTED, PadRight
from mlpfusion.data.language.task import LANGUAGE, LanguageTask, Texts
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task
from mlpfusion.loop.steps import backward
from mlpfusion.measure.dynamics import held_out_logits
from mlpfusion.options.task import TaskOptions
from mlpfusion.tune.finetune import Finetune, finetune


@pytest.fixture
def decoder(tmp_path):
    return save_checkpoint(tmp_path / "decoder", "llama", AutoModelForCausalLM)


@pytest.fixture
def texts(tmp_path) -> list[object]:
    """The flags of `mlpfusion tune` for plain texts."""
    for name, count, seed in (("train", 300, 0), ("validation", 60, 1)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(count, seed)[0]))
    files = ["--train", tmp_path / "train.txt", "--validation", tmp_path / "validation.txt"]
    return ["--task", "language-modelling", *files, "--max-length", 16]


SPEED = ["--batch-size", 16, "--epochs", 2, "--device", "cpu", "--learning-rate", "2e-3"]


def encoded(count: int = 60) -> EncodedTask:
    data = TaskData(
        LANGUAGE["language-modelling"],
        Texts(tuple(sentences(count, 0)[0])),
        {"validation": Texts(tuple(sentences(20, 1)[0]))},
        "made up",
    )
    return encode_task(data, tiny_tokenizer(), max_length=16)


def test_the_perplexity_is_that_of_evaluate_and_falls(decoder, texts, tmp_path):
    before = call("evaluate", decoder, "--data", tmp_path / "validation.txt", "--window", 16, "--json")
    assert call("tune", decoder, tmp_path / "out", *texts, *SPEED).exit_code == 0
    record = json.loads((tmp_path / "out/mlp_fusion_tune_record.json").read_text())
    after = call("evaluate", tmp_path / "out", "--data", tmp_path / "validation.txt", "--window", 16, "--json")
    perplexities = [json.loads(result.stdout)["result"]["perplexity"] for result in (before, after)]
    found = record["scores"]["validation"]
    assert found["perplexity"][0] == pytest.approx(perplexities[1], rel=1e-5)
    assert perplexities[1] < 0.9 * perplexities[0]
    assert record["task"] == "language-modelling"
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_a_compressed_decoder_is_tuned_with_lora_and_loads(decoder, texts, tmp_path):
    assert call("compress", decoder, tmp_path / "cut", "--layers", "last:2", "--keep-ratio", 0.5).exit_code == 0
    lora = ["--lora", "r=2,targets=all-linear"]
    result = call("tune", tmp_path / "cut", tmp_path / "out", *texts, *SPEED, *lora)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() < AutoModelForCausalLM.from_pretrained(decoder).num_parameters()
    adapter = json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())
    assert adapter["task_type"] == "CAUSAL_LM"


def test_the_epoch_of_the_lowest_perplexity_is_kept():
    data = encoded(30)
    _, record = finetune(
        pico_model("llama", AutoModelForCausalLM),
        data,
        Finetune(epochs=20, batch_size=4, learning_rate=0.02, select_on="validation", patience=2, device="cpu"),
    )
    perplexities = [epoch.scores["perplexity"] for epoch in record.epochs]
    assert record.selection_score == min(perplexities)
    assert perplexities.index(min(perplexities)) < len(perplexities) - 1  # else this test shows nothing
    assert len(perplexities) == perplexities.index(min(perplexities)) + 3  # patience
    assert record.scores["validation"]["perplexity"] == pytest.approx(min(perplexities), rel=1e-6)


def test_windows_are_padded_on_the_right_whatever_the_tokenizer_does():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    items = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in ([5, 6, 7], [8, 9])]
    batch = PadRight(tokenizer)(items)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, 9, NOT_PREDICTED]]


def test_all_training_windows_are_whole_and_none_is_lost_in_evaluation():
    data = encoded()
    assert set(data.train.lengths) == {16}
    assert sum(data.evaluation["validation"].lengths) > 16 * (len(data.evaluation["validation"]) - 1)
    assert all(item["labels"] == item["input_ids"] for item in data.train.items)


def test_a_step_in_parts_has_the_gradient_of_the_whole_batch():
    data = encoded()
    items = [data.train[0], data.train[1], data.evaluation["validation"][-1]]
    items[1] = items[1] | {"labels": [NOT_PREDICTED] * 10 + items[1]["labels"][10:]}
    model = pico_model("llama", AutoModelForCausalLM).double()
    found = []
    for parts in ([items], [items[:1], items[1:]]):
        model.zero_grad()
        loss = backward(model, [data.collate(part) for part in parts], 1, 1e-3)
        found.append((loss, model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)  # transformers computes the loss in fp32
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_the_compared_predictions_are_spread_over_the_predicted_tokens():
    kind = LanguageModelling()
    labels = torch.full((2, 41), NOT_PREDICTED)
    labels[0, 10:], labels[1, 3:6] = 7, 7
    logits = torch.arange(41.0).expand(2, 41)[..., None]
    found = kind.answer_logits(logits, labels, shifted=True).squeeze(1).tolist()
    assert found[:16] == [9.0 + 2 * number for number in range(16)]  # one before its label, from the first to the last
    assert found[16:] == [2.0, 3.0, 4.0]  # no token twice
    model, data = pico_model("llama", AutoModelForCausalLM), encoded()
    batch = data.collate([data.train[0]])
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"]).logits[0, :15]
    assert torch.equal(held_out_logits(model, [batch], kind), expected)


def test_dynamics_of_a_decoder(decoder, texts, tmp_path):
    flags = ["--methods", "fusion,folded-fusion", "--steps", 5, "--seeds", 0, "--batch-size", 4, "--device", "cpu"]
    result = call("dynamics", decoder, *texts, "--out", tmp_path / "out", *flags, "--eval-samples", 40)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/dynamics.json").read_text())
    full, fusion, folded = record["rows"]
    assert full["distance"] == [0.0] * 3
    assert all(0 < distance < 2 for distance in fusion["distance"])
    assert fusion["distance"] != folded["distance"]
    assert (record["held_out"]["samples"], record["held_out"]["answers"]) == (3, 16)
    assert "3 examples of validation, 16 tokens of each" in (tmp_path / "out/dynamics.md").read_text()


def test_distillation_of_a_decoder_sees_windows(decoder, texts, tmp_path):
    assert call("compress", decoder, tmp_path / "cut", "--keep-ratio", 0.5).exit_code == 0
    flags = ["--objective", "logits", "--data", tmp_path / "train.txt", "--max-length", 16, "--max-samples", 40]
    result = call("distill", decoder, tmp_path / "cut", tmp_path / "out", *flags, "--device", "cpu")
    assert result.exit_code == 0, result.output
    run = json.loads((tmp_path / "out/mlp_fusion_distill_record.json").read_text())["run"]
    assert (run["train_samples"], run["held_out_samples"]) == (36, 4)


def test_a_task_with_texts_of_its_own_runs_in_an_experiment(decoder, tmp_path, monkeypatch):
    folder = tmp_path / "data/lm/wikitext-2"
    folder.mkdir(parents=True)
    for name, seed in (("train", 0), ("validation", 1), ("test", 2)):
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress("\n".join(sentences(60, seed)[0]).encode()))
    monkeypatch.setenv("MLPFUSION_DATA", str(tmp_path / "data"))
    recipe = {"tasks": ["wikitext2"], "methods": ["full", "fusion"], "seeds": [0], "epochs": 1, "max_length": 16}
    recipe |= {"model": str(decoder), "device": "cpu", "select_on": "validation", "learning_rate": [1e-4, 1e-2]}
    (tmp_path / "small.yaml").write_text(json.dumps(recipe))
    result = call("reproduce", tmp_path / "small.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out/small.json").read_text())
    runs = [row for row in record["rows"] if row["label"] == "full"]
    kept, other = sorted(runs, key=lambda row: row["run"]["scores"]["validation"]["perplexity"])
    assert (kept["chosen"], other["chosen"]) == (True, False)
    assert f"{kept['run']['scores']['test']['perplexity']:.2f}" in (tmp_path / "out/small.md").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--label-column", "x"],
            "`--label-column` must be left out for the task language-modelling, which has no use for it, got x",
        ),
        (
            ["--new-head"],
            "`--new-head` must be left out for the task language-modelling, which has no use for it",
        ),
        (["--text-column", "a,b"], "`--text-column` must name one column for language-modelling, got a,b"),
        (["--max-length", 4], "`--max-length` must be between 8 and 64, what the model takes, got 4"),
        (["--metric-for-best-model", "bleu"], "`--metric-for-best-model` must be one of perplexity, loss, got 'bleu'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(flags, message, decoder, texts, tmp_path):
    assert message in refused("tune", decoder, tmp_path / "out", *texts, *flags)
    assert not (tmp_path / "out").exists()


def test_models_and_texts_that_do_not_fit_are_refused(decoder, texts, tmp_path):
    out = tmp_path / "out"
    task = ["--task", "language-modelling"]
    missing = refused("tune", decoder, out, *task, "--train", tmp_path / "train.txt")
    assert "`--validation` must be given for language-modelling, which has no texts of its own" in missing
    (tmp_path / "short.txt").write_text("w1 w2\nw3")
    short = refused("tune", decoder, out, *texts, "--validation", tmp_path / "short.txt")
    assert "`--validation` must hold at least the 16 tokens of a `--max-length`, got 4" in short
    encoder = save_checkpoint(tmp_path / "encoder", "bert", AutoModelForMaskedLM)
    assert "MODEL must be a causal language model, such as a LlamaForCausalLM, got a BertForMaskedLM" in refused(
        "tune", encoder, out, *texts
    )
    base = save_checkpoint(tmp_path / "base", "llama")
    assert "MODEL must be a causal language model" in refused("tune", base, out, *texts)
    learned = refused("compress", decoder, out, "--method", "lth", "--keep-ratio", 0.5, "--task", "wikitext2")
    assert (
        "`--task` must be a classification or a regression for a method that learns on a task, got wikitext2" in learned
    )
    assert not out.exists()


def test_columns_of_tables_are_read(tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"story": "w1 w2"}\n{"story": "w3"}\n')
    file = str(tmp_path / "texts.jsonl")
    options = TaskOptions(task="language-modelling", train=file, text_column=("story",))
    data = chosen_data(options, file)
    assert isinstance(data.task, LanguageTask)
    assert data.train.texts == data.evaluation["validation"].texts == ("w1 w2", "w3")
