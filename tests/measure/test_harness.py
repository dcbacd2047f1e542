"""Tasks of lm-eval on a checkpoint: scores by hand, and one line for what cannot be run."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command import call, refused
from tiny_task import WORDS, save_checkpoint, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.errors import InputError
from mlpfusion.measure.evaluation.harness import check_texts_are_open

installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")
# Warnings of lm-eval and what it imports are not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def model(tmp_path) -> Path:
    """A decoder whose tokenizer puts nothing around a text, as those of decoders do: lm-eval cuts texts at places."""
    folder, tokenizer = save_checkpoint(tmp_path / "model", "gpt2", AutoModelForCausalLM), tiny_tokenizer()
    bare = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.backend_tokenizer.post_processor = bare  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(folder)
    return folder


def write_task(folder: Path) -> list[object]:
    """Flags for a task of one's own: which of two words comes next?"""
    (folder / "tasks").mkdir()
    rows = [
        {"text": f"{WORDS[i]} {WORDS[3 * i]}", "words": [WORDS[i + 1], WORDS[5 * i]], "gold": i % 2} for i in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks/next_word.yaml").write_text(
        f"""\
task: next_word
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: words
doc_to_target: gold
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""
    )
    return ["--lm-eval", "next_word", "--lm-eval-include", folder / "tasks"]


@torch.no_grad()
def accuracy(folder: Path, rows: list[dict]) -> float:
    """The share of rows whose right word is the likelier one after the text."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), tiny_tokenizer()
    right = 0
    for row in rows:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        first, second = (logits[tokenizer.convert_tokens_to_ids(word)] for word in row["words"])
        right += int(first < second) == row["gold"]
    return right / len(rows)


@installed
def test_a_task_of_ones_own_scores_what_is_found_by_hand(model, tmp_path):
    task, cut = write_task(tmp_path), tmp_path / "cut"
    assert call("compress", model, cut, "--keep-ratio", 0.25).exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for folder in (model, cut):
        result = call("evaluate", folder, *task, "--json")
        assert result.exit_code == 0, result.output
        record = json.loads(result.stdout)
        assert record["found"]["results"]["next_word"]["acc,none"] == pytest.approx(accuracy(folder, rows))
        assert record["found"]["n-samples"]["next_word"]["original"] == 9
        assert record["versions"]["lm_eval"]


@installed
def test_the_table_is_printed_and_the_record_kept(model, tmp_path):
    task, state = write_task(tmp_path), torch.get_rng_state()
    result = call("evaluate", model, *task, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "|next_word|" in result.stdout
    assert "is complete" in result.stdout
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert record["tasks"] == ["next_word"]
    assert torch.equal(torch.get_rng_state(), state)
    again = refused("evaluate", model, *task, "--out", tmp_path / "out")
    assert "`--out` must" in again
    assert call("evaluate", model, *task, "--out", tmp_path / "out", "--overwrite").exit_code == 0


@installed
def test_unknown_tasks_and_folders_are_named_before_the_weights_are_read(model, tmp_path):
    task = write_task(tmp_path)
    (model / "model.safetensors").write_bytes(b"")
    unknown = refused("evaluate", model, "--lm-eval", "hellaswagg")
    assert "`--lm-eval` must name tasks that lm-eval has, such as " in unknown
    assert "hellaswag" in unknown
    assert unknown.endswith("got 'hellaswagg'")
    assert "must be a folder of YAML files" in refused("evaluate", model, *task[:3], tmp_path / "none")
    (tmp_path / "rows.jsonl").unlink()
    missing = refused("evaluate", model, *task)
    assert "`--lm-eval` must name tasks that can be read, got next_word: " in missing


def test_a_tokenizer_that_ends_every_text_is_refused_for_a_decoder(model, tmp_path):
    check_texts_are_open(open_checkpoint(str(model)))
    check_texts_are_open(open_checkpoint(str(save_checkpoint(tmp_path / "t5", "t5", AutoModelForSeq2SeqLM))))
    closed = save_checkpoint(tmp_path / "closed", "gpt2", AutoModelForCausalLM)
    with pytest.raises(InputError, match=r"`model` must have a tokenizer that puts nothing .* one that puts '\[SEP\]'"):
        check_texts_are_open(open_checkpoint(str(closed)))


@installed
def test_such_a_tokenizer_is_refused_before_the_weights_are_read(tmp_path):
    closed, task = save_checkpoint(tmp_path / "closed", "gpt2", AutoModelForCausalLM), write_task(tmp_path)
    (closed / "model.safetensors").write_bytes(b"")
    assert "puts nothing after a text for lm_eval" in refused("evaluate", closed, *task)


def test_without_the_package_the_extra_is_named(model, monkeypatch):
    monkeypatch.setattr("mlpfusion.extras.find_spec", lambda module: None)
    refusal = refused("evaluate", model, "--lm-eval", "piqa")
    assert refusal == "Error: `--lm-eval` needs lm-eval: pip install 'mlpfusion[lm-eval]'"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lm-eval", "piqa", "--data", "a.txt"], "exactly one of `--data`, `--task` and `--lm-eval` must be given"),
        (["--lm-eval", "piqa", "--window", 64], "`--window` must be left out with `--lm-eval`, got 64"),
        (["--lm-eval", "piqa", "--num-beams", 2], "`--num-beams` must be left out with `--lm-eval`, got 2"),
        (["--data", "a.txt", "--lm-eval-include", "x"], "`--lm-eval-include` must be left out with `--data`, got x"),
    ],
)
def test_what_does_not_go_with_the_harness_is_refused(flags, message):
    assert message in refused("evaluate", "model", *flags)
