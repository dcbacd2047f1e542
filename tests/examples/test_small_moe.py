"""The example that makes a mixture of experts out of a Llama."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from scripts import load_script
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import mlpfusion

TEXT = "one two three four five six seven eight nine ten " * 60


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A tiny random Llama with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama")
    words = {word: number for number, word in enumerate(["<unk>", *TEXT.split()[:10]])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=32, intermediate_size=44, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=128,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def mixture(llama, tmp_path_factory) -> Any:
    """A Mixtral after two steps of training."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "text.txt").write_text(TEXT)
    arguments = [str(llama), str(folder / "out"), str(folder / "text.txt"), "--steps", "2"]
    result = CliRunner().invoke(load_script("examples/small_moe.py").main, arguments)
    assert result.exit_code == 0, result.output
    assert "8 experts a layer, trained 2 steps" in result.stdout
    return AutoModelForCausalLM.from_pretrained(folder / "out").eval()


def test_half_of_the_neurons_of_every_expert_are_those_of_the_mlp(llama):
    source = AutoModelForCausalLM.from_pretrained(llama)
    made = load_script("examples/small_moe.py").mixture_of(source, torch.Generator().manual_seed(0))
    mlp, experts = source.model.layers[1].mlp, made.model.layers[1].mlp.experts
    assert experts.down_proj.shape == (8, 32, 48)  # 44 neurons, made a multiple of 8
    kept = []
    for expert in range(8):
        same = (experts.down_proj[expert][:, :44] == mlp.down_proj.weight).all(0)
        gates = (experts.gate_up_proj[expert][:44] == mlp.gate_proj.weight).all(1)
        assert int(same.sum()) == 22
        assert torch.equal(same, gates)
        kept.append(same)
    assert any(not torch.equal(kept[0], other) for other in kept[1:])
    assert torch.equal(made.model.layers[0].self_attn.q_proj.weight, source.model.layers[0].self_attn.q_proj.weight)


def test_the_mixture_is_cut_and_keeps_its_router(mixture):
    assert type(mixture).__name__ == "MixtralForCausalLM"
    assert not mixture.config.output_router_logits
    router = mixture.model.layers[0].mlp.gate.weight.clone()
    small: Any = copy.deepcopy(mixture)
    mlpfusion.compress(small, mlpfusion.Fusion(), keep_ratio=0.5)
    assert torch.equal(small.model.layers[0].mlp.gate.weight, router)


def test_what_is_no_llama_is_refused(mixture, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    mixture.save_pretrained(tmp_path / "source")
    result = CliRunner().invoke(
        load_script("examples/small_moe.py").main,
        [str(tmp_path / "source"), str(tmp_path / "out"), str(tmp_path / "text.txt")],
    )
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()
