"""Perplexity: against the loss that transformers computes, and from the command line."""

import json
import math

import numpy as np
import pytest
import torch
from command import call, refused
from pico import pico_config, pico_model
from tiny_task import WORDS, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaForCausalLM

from mlpfusion.data.unlabelled.windows import Window
from mlpfusion.errors import InputError
from mlpfusion.measure import language
from mlpfusion.measure.language import language_loss, window_losses


def llama(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return pico_model("llama", AutoModelForCausalLM, dtype=dtype)


def windows(count: int, length: int = 20, scored: int = 19) -> list[Window]:
    ids = torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(0))
    return [Window(row, scored) for row in ids]


def test_it_is_the_loss_of_transformers():
    model, texts = llama(), windows(7)
    with torch.no_grad():
        expected = float(
            model(
                input_ids=torch.stack([one.input_ids for one in texts]),
                labels=torch.stack([one.input_ids for one in texts]),
            ).loss
        )
    found = language_loss(model, texts)
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.perplexity == math.exp(found.loss)
    assert (found.tokens, found.windows) == (7 * 19, 7)


def test_only_the_last_tokens_of_a_window_count():
    model, whole = llama(), windows(1)[0]
    with torch.no_grad():
        logits = model(input_ids=whole.input_ids[None]).logits[0]
    each = torch.nn.functional.cross_entropy(logits[:-1].double(), whole.input_ids[1:], reduction="none")
    for scored in (1, 6, 19):
        found = window_losses(model, [Window(whole.input_ids, scored)])
        assert found == pytest.approx([float(each[-scored:].sum())], rel=1e-5)


def test_windows_that_share_a_forward_pass_do_not_matter(monkeypatch):
    model, texts = llama(), [*windows(5), *windows(2, 12, 11)]
    together = window_losses(model, texts)
    monkeypatch.setattr(language, "_LOGITS", 1)
    assert window_losses(model, texts) == pytest.approx(together, rel=1e-5)


def test_a_model_in_half_precision_is_measured_in_fp32_on_a_cpu_and_stays_as_it_is():
    half = llama(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    wide = llama(torch.bfloat16).float()
    assert window_losses(half, windows(3)) == pytest.approx(window_losses(wide, windows(3)), rel=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in half.state_dict().items())


def test_the_interval_holds_the_perplexity_and_shrinks_with_more_windows():
    model = llama()
    few, many = language_loss(model, windows(8)), language_loss(model, windows(128))
    for found in (few, many):
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.perplexity < found.high
    ratio = math.log(many.high / many.low) / math.log(few.high / few.low)  # type: ignore[operator]
    assert 0.1 < ratio < 0.6  # a quarter for 16 times as many, less for the 95 % of eight
    assert language_loss(model, windows(8), seed=0) == few
    assert language_loss(model, windows(1)).low is None


def test_the_interval_is_that_of_the_mean_over_tokens():
    losses, counts = np.array([30.0, 2.0] * 50), np.array([10, 1] * 50)
    low, high = language._interval(losses, counts, 0)
    assert low < math.exp(losses.sum() / counts.sum()) < high
    # ratio estimator: the residual of a window is its loss less the mean loss of so many tokens
    residual = losses - counts * losses.sum() / counts.sum()
    half = 1.96 * residual.std() / math.sqrt(len(losses)) / counts.mean()
    assert math.log(high / low) / 2 == pytest.approx(half, rel=0.15)


def test_other_models_and_broken_ones_are_refused():
    with pytest.raises(InputError, match="`model` must be a causal language model, .* got a LlamaModel"):
        language_loss(pico_model("llama"), windows(2))
    with pytest.raises(InputError, match="in this BertLMHeadModel the tokens after it count too"):
        language_loss(pico_model("bert", AutoModelForCausalLM), windows(2))
    decoder = pico_config("bert")
    decoder.is_decoder = True
    language_loss(AutoModelForCausalLM.from_config(decoder).eval(), windows(2))
    broken = llama()
    with torch.no_grad():
        broken.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(float("inf"))
    with pytest.raises(InputError, match="`model` must give finite losses on the texts, it gives NaN or Inf"):
        language_loss(broken, windows(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    llama().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [" ".join(WORDS[(7 * i + j * j) % 60] for j in range(15)) for i in range(40)]
    (folder / "texts.txt").write_text("\n".join(lines))
    return folder


def test_the_command_prints_the_perplexity_of_a_model_and_of_a_compressed_one(folder):
    data = ("--data", folder / "texts.txt", "--window", 32, "--stride", 16)
    shown = call("evaluate", folder / "model", *data)
    assert shown.exit_code == 0, shown.output
    found = json.loads(call("evaluate", folder / "model", *data, "--json").stdout)
    result = found["result"]
    first, second = shown.stdout.splitlines()
    assert first.startswith(f"perplexity {result['perplexity']:.4g} (95 % interval {result['low']:.4g} to")
    assert second.startswith("600 tokens of texts.txt, windows of 32 tokens: ")
    assert result["tokens"] == 600  # 40 texts of 15 words; the empty line between two is no token here
    assert found["text"] == {"file": "texts.txt", "column": None, "window": 32, "stride": 16, "max_tokens": None}
    assert str(folder) not in json.dumps(found)
    assert call("compress", folder / "model", folder / "cut", "--keep-ratio", 0.5).exit_code == 0
    cut = json.loads(call("evaluate", folder / "cut", *data, "--json").stdout)
    assert cut["parameters"] < found["parameters"]
    assert cut["result"]["loss"] != result["loss"]
    assert cut["texts_sha256"] == found["texts_sha256"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "texts.txt", "--window", 65], "`--window` must be between 8 and 64, what the model takes, got 65"),
        (["--data", "texts.txt", "--stride", 64], "`--stride` must be between 1 and 63, the tokens of a window"),
        (["--data", "texts.txt", "--max-tokens", 5], "`--max-tokens` must be at least 64, the tokens of a window"),
        (["--data", "short.txt"], "`--data` must hold at least the 64 tokens of a `--window`, got 3"),
        (["--data", "missing.txt"], "`--data` must be a readable file"),
        (["--data", "texts.txt", "--device", "tpu"], "`--device` must be"),
        (["--data", "texts.txt", "--seed", -1], "`--seed` must be at least 0, got -1"),
    ],
)
def test_the_command_refuses_in_one_line(flags, message, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "short.txt").write_text("w1 w2")
    assert message in refused("evaluate", "model", *flags)


def test_an_encoder_is_refused_before_its_texts_are_read(folder):
    model = AutoModelForSequenceClassification.from_config(pico_config("bert"))
    model.save_pretrained(folder / "encoder")
    tiny_tokenizer().save_pretrained(folder / "encoder")
    line = refused("evaluate", folder / "encoder", "--data", folder / "missing.txt")
    assert "must be a causal language model, such as a LlamaForCausalLM, got a BertForSequenceClassification" in line
