"""The example that pretrains a small GPT-2."""

import gzip
import json

import pytest
import torch
from click.testing import CliRunner
from scripts import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

TEXT = "The quick brown fox jumps over the lazy dog. " * 120


@pytest.fixture
def folder(tmp_path):
    """A vocabulary of single bytes, one of its files packed, and two texts."""
    characters = [*bytes_to_unicode().values(), "<|endoftext|>"]
    with gzip.open(tmp_path / "vocab.json.gz", "wt", encoding="utf-8") as file:
        json.dump({character: number for number, character in enumerate(characters)}, file)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "held-out.txt").write_text(TEXT[:600])
    return tmp_path


def run(folder, *options):
    arguments = [folder, folder / "out", folder / "train.txt", "--held-out", folder / "held-out.txt", *options]
    return CliRunner().invoke(load_script("examples/pretrain_gpt2.py").main, list(map(str, arguments)))


@pytest.mark.slow
def test_a_gpt2_is_trained_that_predicts_the_held_out_text_and_has_a_record(folder):
    result = run(folder)
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    ids = torch.tensor([tokenizer(TEXT[:200]).input_ids])
    with torch.no_grad():
        loss = model(ids, labels=ids).loss.item()
    assert loss < 4.5  # a uniform guess among 257: 5.5
    record = json.loads((folder / "out" / "mlp_fusion_tune_record.json").read_text())
    assert record["scores"]["validation"]["perplexity"][0] < 90
    assert model.config.n_positions == tokenizer.model_max_length == 512
    assert not (folder / "out.begun").exists()
    assert "SHA-256 of its model.safetensors: " in result.stdout


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(folder, monkeypatch):
    assert run(folder).exit_code == 0
    wanted = (folder / "out" / "model.safetensors").read_bytes()
    (folder / "out").rename(folder / "whole")

    def stopped(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlpfusion.tune.run.finish_job", stopped)
        assert run(folder).exit_code != 0
    assert (folder / "out.begun").exists()
    again = run(folder, "--resume")
    assert again.exit_code == 0, again.output
    assert (folder / "out" / "model.safetensors").read_bytes() == wanted


def test_a_folder_without_a_vocabulary_is_refused(folder):
    (folder / "merges.txt").unlink()
    result = run(folder)
    assert result.exit_code == 1
    assert "`vocabulary` must hold merges.txt or merges.txt.gz, got" in result.stderr
    assert not (folder / "out").exists()
    assert not (folder / "out.begun").exists()
