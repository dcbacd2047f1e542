"""The warning for a language model that a cut has damaged: what it measures, when it comes and when it does not."""

import json

import pytest
import torch
from command import call
from pico import WIDTH, pico_inputs, pico_model
from tiny_task import WORDS, tiny_tokenizer
from torch.distributions import Categorical, kl_divergence
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from mlpfusion.compression.predictions import divergence, predictions, short_texts


def llama(dtype: torch.dtype = torch.float32):
    return pico_model("llama", AutoModelForCausalLM, dtype=dtype)


def test_the_divergence_is_that_of_the_distributions():
    first, second = (torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = kl_divergence(Categorical(logits=first), Categorical(logits=second)).mean()
    before, after = ([one.log_softmax(-1) for one in logits] for logits in (first, second))
    assert divergence(before, after) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(after, before) != pytest.approx(float(expected), rel=1e-2)


def test_the_tokens_that_a_mask_hides_do_not_count():
    model, ids = llama(), pico_inputs("llama", 0)["input_ids"][:2, :6]
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=ids.dtype)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 3, dtype=ids.dtype)], dim=1)
    (plain,), (masked,) = (
        predictions(model, [batch]) for batch in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": mask})
    )
    assert plain.shape == (12, model.config.vocab_size)
    torch.testing.assert_close(masked, plain, rtol=1e-4, atol=1e-5)
    assert plain.exp().sum(1) == pytest.approx(torch.ones(12).numpy(), rel=1e-5)


def test_a_model_in_half_precision_is_asked_in_fp32_on_a_cpu():
    batch = {"input_ids": pico_inputs("llama", 0)["input_ids"]}
    (half,), (full,) = (predictions(model, [batch]) for model in (llama(torch.bfloat16), llama(torch.bfloat16).float()))
    torch.testing.assert_close(half, full)


def test_texts_are_taken_from_every_batch():
    batches = [{"input_ids": torch.full((32, 100), number), "labels": torch.ones(32)} for number in range(5)]
    found = short_texts(batches)
    assert [tuple(one["input_ids"].shape) for one in found] == [(4, 32)] * 5
    assert [int(one["input_ids"][0, 0]) for one in found] == [0, 1, 2, 3, 4]
    assert all(set(one) == {"input_ids"} for one in found)
    assert len(short_texts(batches * 9)) == 16


@pytest.fixture
def folder(tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # sure of every word, as a trained model is: a cut makes it sure of others
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[i : i + 12]) for i in range(40)))
    return tmp_path


def compressed(folder, *flags: object) -> tuple[float | None, str, str]:
    """The divergence in the record, and what the command prints and warns."""
    result = call("compress", folder / "model", folder / "out", "--overwrite", *flags)
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "out" / "mlp_fusion_record.json").read_text())
    return record["divergence"], result.stdout, result.stderr


@pytest.mark.filterwarnings("default:the cut damaged")
@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        (["--keep-ratio", 0.25], "random tokens"),
        pytest.param(["--keep-ratio", 0.25, "--method", "svd"], "random tokens", marks=pytest.mark.slow),
        pytest.param(
            ["--keep-ratio", 0.25, "--method", "ntk-match", "--data-free"],
            "text that the model wrote",
            marks=pytest.mark.slow,
        ),
        (["--keep-ratio", 0.25, "--method", "ntk-match", "--calibration"], "texts.txt"),
    ],
)
def test_a_damaged_language_model_is_written_and_warned_of_with_the_number(flags, texts, folder):
    given = [*flags, folder / "texts.txt"] if flags[-1] == "--calibration" else flags
    moved, printed, warned = compressed(folder, *given)
    assert moved is not None
    assert moved > 1
    lines = [line for line in warned.splitlines() if line.startswith("Warning: the cut damaged the model")]
    assert len(lines) == 1
    assert f"its predictions on {texts} moved by {moved:.1f} nats a token" in lines[0]
    assert f"predictions moved by {moved:.2f} nats a token" in printed
    assert "Next: `mlpfusion evaluate" in printed
    AutoModelForCausalLM.from_pretrained(folder / "out")


def test_a_cut_that_changes_nothing_is_not_warned_of(folder):
    moved, _, warned = compressed(folder, "--width", WIDTH, "--method", "neuron-pruning")
    assert moved == pytest.approx(0, abs=1e-5)
    assert "damaged" not in warned


def test_other_models_and_those_without_a_tokenizer_are_not_asked(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "model" / name).unlink()
    assert compressed(folder, "--keep-ratio", 0.25)[0] is None
    pico_model("bert", AutoModelForMaskedLM).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    moved, printed, warned = compressed(folder, "--keep-ratio", 0.25)
    assert moved is None
    assert "predictions" not in printed + warned
    assert "mlpfusion tune" in printed
