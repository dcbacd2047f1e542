"""The outputs of the whole model: the last hidden state, and the loss of a language model."""

import json

import pytest
import torch
from command import call
from pico import SEVERAL, others_slow, pico_inputs, pico_model
from tiny_task import WORDS, tiny_tokenizer
from transformers import AutoModel, AutoModelForCausalLM

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.measure.comparison import compare_methods
from mlpfusion.measure.whole_model import layer_of_other, model_error, model_outputs
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import ARCHITECTURES


def test_the_loss_is_the_one_that_transformers_computes():
    model = pico_model("llama", AutoModelForCausalLM)
    ids = pico_inputs("llama")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids, labels=ids).loss
    assert model_outputs(model, [{"input_ids": ids}]).loss == pytest.approx(float(expected), rel=1e-5)


def test_hidden_tokens_do_not_count():
    model = pico_model("llama", AutoModelForCausalLM)
    ids = pico_inputs("llama")["input_ids"]
    padded = torch.cat([ids, torch.zeros(len(ids), 4, dtype=ids.dtype)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(len(ids), 4, dtype=ids.dtype)], dim=1)
    plain, masked = (
        model_outputs(model, [batch]) for batch in ({"input_ids": ids}, {"input_ids": padded, "attention_mask": mask})
    )
    assert masked.loss == pytest.approx(plain.loss, rel=1e-5)
    torch.testing.assert_close(masked.hidden, plain.hidden, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="`batches` must hold at least one batch, got none"):
        model_outputs(model, [])


@pytest.mark.parametrize("name", others_slow(SEVERAL))
def test_a_layer_of_a_compressed_model_alone_is_that_layer_compressed_alone(name):
    original, together = pico_model(name), pico_model(name)
    mlpfusion.compress(together, mlpfusion.NeuronPruning(), width=9)
    batches, row = [pico_inputs(name)], ARCHITECTURES[original.config.model_type]
    before = model_outputs(original, batches)
    site = find_sites(original, row)[-2]
    alone = pico_model(name)
    mlpfusion.compress(alone, mlpfusion.NeuronPruning(), width=9, layers=str(site.layer))
    if name not in ("bart", "t5-gated"):  # where a layer is one of the encoder and one of the decoder
        with layer_of_other(original, together, site):
            assert torch.equal(model_outputs(original, batches).hidden, model_outputs(alone, batches).hidden)
    assert before.loss is None
    assert torch.equal(model_outputs(original, batches).hidden, before.hidden)
    assert 0 < model_error(before, model_outputs(together, batches)).hidden_error < 10


def test_compare_has_the_loss_of_the_model_with_one_layer_cut():
    model, batches = pico_model("llama", AutoModelForCausalLM), [{"input_ids": pico_inputs("llama")["input_ids"]}]
    rows = compare_methods(
        model, [mlpfusion.NeuronPruning()], batches, layers="0,2", keep_ratio=0.25, seeds=[0], calibration=None
    )
    before = model_outputs(model, batches)
    for row in rows:
        small = pico_model("llama", AutoModelForCausalLM)
        mlpfusion.compress(small, mlpfusion.NeuronPruning(), keep_ratio=0.25, layers=str(row.error.layer))
        assert row.error.whole_model == model_error(before, model_outputs(small, batches))
        assert row.error.whole_model is not None
        assert row.error.whole_model.loss_before == before.loss


@pytest.mark.parametrize("auto_class", [AutoModelForCausalLM, AutoModel])
def test_measure_prints_and_returns_them(auto_class, tmp_path):
    pico_model("llama", auto_class).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(WORDS[i : i + 12]) for i in range(20)))
    assert call("compress", tmp_path / "model", tmp_path / "out", "--keep-ratio", 0.5).exit_code == 0
    arguments = ("measure", tmp_path / "model", tmp_path / "out", "--data", tmp_path / "texts.txt")
    found, shown = json.loads(call(*arguments, "--json").stdout), call(*arguments).stdout
    whole = found["whole_model"]
    assert len(found["blocks"]) == 3
    assert f"last hidden state off by {whole['hidden_error']:.3f} of its size" in " ".join(shown.split())
    assert "hidden: that of the model's last hidden state" in " ".join(shown.split())
    has_loss = auto_class is AutoModelForCausalLM
    assert (whole["loss_before"] is not None) == has_loss
    assert ("nats a token" in shown) == has_loss
