"""The example that trains a mixture of experts from nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from scripts import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlpfusion

KINDS = {"numbers": "one two three four five six seven", "colours": "red green blue yellow black white"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> list[str]:
    """A file of every kind of text; some tokens are whole words only."""
    folder = tmp_path_factory.mktemp("texts")
    for name, words in KINDS.items():
        each = words.split()
        lines = [" ".join(each[(line * place) % len(each)] for place in range(60)) for line in range(100)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return [str(folder / f"{name}.txt") for name in KINDS]


def made(out: Path, texts: list[str], *options: str) -> Any:
    """What the script says, once `out` is made."""
    result = CliRunner().invoke(load_script("examples/small_qwen3_moe.py").main, [str(out), *texts, *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_mixture_is_trained_with_its_tokenizer_and_can_be_cut(texts, tmp_path):
    told = made(tmp_path / "out", texts, "--steps", "2")
    assert told.count("on what was held out") == len(KINDS)
    assert "trained 2 steps" in told
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.model_type == "qwen3_moe"
    assert not model.config.output_router_logits
    assert tokenizer.decode(tokenizer("two red", text_pair="six")["input_ids"]) == "two red<|endoftext|>six"
    gate = model.model.layers[0].mlp.gate.weight.clone()
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    assert torch.equal(model.model.layers[0].mlp.gate.weight, gate)


def test_a_seed_decides_all_bytes(texts, tmp_path):
    for name, seed in {"one": "0", "same": "0", "other": "1"}.items():
        made(tmp_path / name, texts, "--steps", "1", "--seed", seed)
    first, same, other = (
        [(tmp_path / name / file).read_bytes() for file in ("model.safetensors", "tokenizer.json")]
        for name in ("one", "same", "other")
    )
    assert first == same
    assert first[0] != other[0]
