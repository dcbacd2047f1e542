"""A GGUF file in the place of a checkpoint: looked at, and cut to a checkpoint of transformers."""

import json
from dataclasses import replace

import pytest
import torch
from command import call, refused
from engines import needs
from transformers import AutoModelForCausalLM, AutoTokenizer

from mlpfusion.checkpoint.formats import gguf as gguf_file

IDS = torch.arange(5, 25).view(2, 10)


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory):
    """A function that exports stories260K, cut to one width: target and flags -> folder."""
    place = tmp_path_factory.mktemp("exported")
    assert call("compress", stories, place / "cut", "--method", "random-neurons", "--keep-ratio", 0.75).exit_code == 0

    def export(target, *flags):
        out = place / "-".join((target, *flags))
        if not out.exists():
            assert call("export", place / "cut", out, "--to", target, *flags).exit_code == 0
        return out

    return export


def logits(place):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(place)(IDS).logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the cut damaged the model")
def test_a_file_is_cut_to_a_checkpoint_with_its_tokenizer(folder, tmp_path):
    needs("gguf")
    file = folder("gguf", "--dtype", "f32") / "model.gguf"
    unpacked = gguf_file.unpacked(file)
    torch.testing.assert_close(logits(unpacked), logits(folder("hf")), rtol=1e-4, atol=1e-4)
    done = call("compress", file, tmp_path / "out", "--width", 64, "--method", "random-neurons")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
    record = json.loads((tmp_path / "out" / "mlp_fusion_record.json").read_text())
    assert record["model"]["name"] == "model.gguf"
    text = "Once upon a time there was a little dog."
    ids = [AutoTokenizer.from_pretrained(place)(text)["input_ids"] for place in (folder("hf"), tmp_path / "out")]
    assert ids[0] == ids[1]
    assert call("export", tmp_path / "out", tmp_path / "stock").exit_code == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the cut damaged the model")
def test_a_quantised_file_is_looked_at_without_its_weights(folder):
    needs("gguf")
    done = call("inspect", folder("gguf", "--dtype", "q8_0") / "model.gguf", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["model_class"], found["known"], found["quantised"]) == ("LlamaForCausalLM", True, None)


@pytest.mark.parametrize("command", [("inspect",), ("compress", "OUT", "--width", 4)], ids=["inspect", "compress"])
def test_a_missing_package_names_the_extra(command, tmp_path, monkeypatch):
    (tmp_path / "model.gguf").touch()
    monkeypatch.setattr(gguf_file, "GGUF_FILE", replace(gguf_file.GGUF_FILE, modules=("no_such_module",)))
    words = [str(tmp_path / "out") if word == "OUT" else word for word in command[1:]]
    said = refused(command[0], tmp_path / "model.gguf", *words)
    assert said == "Error: a GGUF file needs no_such_module: pip install 'mlpfusion[gguf]'"


@pytest.mark.parametrize("content", [b"", b"GGUF" + bytes(60), b"no gguf at all" * 9])
def test_a_damaged_file_is_one_line(content, tmp_path):
    needs("gguf")
    (tmp_path / "model.gguf").write_bytes(content)
    said = refused("inspect", tmp_path / "model.gguf")
    assert said.startswith("Error: MODEL must be a GGUF file that transformers reads, got 'model.gguf': ")


def test_a_revision_of_a_file_is_one_line(tmp_path):
    (tmp_path / "model.gguf").touch()
    said = refused("inspect", tmp_path / "model.gguf", "--revision", "main")
    assert said.startswith("Error: `--revision` must be left out for a file, got 'main'")
