"""Models that lost heads, and neurons too: compressed, folded, exported."""

import copy
import json
from typing import Any

import pytest
import torch
from command import call, refused
from detected import detected_model, detected_outputs
from pico import pico_model, pico_outputs
from test_slicing import assert_same, masked, some_heads
from transformers import AutoModel

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.export.run import EXPORT_RECORD_FILE
from mlpfusion.export.table import TARGETS
from mlpfusion.heads.key import NO_STOCK_FORM, heads_key
from mlpfusion.heads.slicing import slice_heads
from mlpfusion.kinds.key import model_key
from mlpfusion.record import RECORD_FILE
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.sites import find_sites, read_mlp

NAMES = ["bert", "roberta", "mpnet", "gpt2"]


def model_of(name: str) -> Any:
    return detected_model(name).double() if name == "mpnet" else pico_model(name, dtype=torch.float64)


def outputs_of(model: Any, name: str) -> torch.Tensor:
    return detected_outputs(model, name) if name == "mpnet" else pico_outputs(model, name)


@torch.no_grad()
def without_neurons(model: Any, small: Any) -> Any:
    """The model with zeros in `down` for the neurons that `small` has not, found by their rows in `up`."""
    model, row = copy.deepcopy(model), find_architecture(model)
    for site, other in zip(find_sites(model, row), find_sites(small, row), strict=True):
        whole, kept = read_mlp(model, site), read_mlp(small, other)
        gone = ~(whole.up[:, None] == kept.up[None]).all(-1).any(1)
        assert int(gone.sum()) == whole.num_neurons - kept.num_neurons
        whole.down[:, gone] = 0
    return model


@pytest.mark.parametrize("name", NAMES)
def test_without_heads_and_neurons_a_model_is_the_one_with_zeros_for_both(name, tmp_path):
    model = model_of(name)
    kept, whole = some_heads(model), copy.deepcopy(model)
    slice_heads(model, kept)
    mlpfusion.compress(model, mlpfusion.NeuronPruning(), keep_ratio=0.6, architecture=find_architecture(whole))
    expected = outputs_of(masked(without_neurons(whole, model), kept), name)
    torch.testing.assert_close(outputs_of(model, name), expected, rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert model_key(loaded.config) is not None
    assert heads_key(loaded.config) == heads_key(model.config)
    assert_same(loaded, model)
    torch.testing.assert_close(outputs_of(loaded, name), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads_first", [True, False])
def test_heads_and_neurons_go_in_any_order(heads_first):
    model = pico_model("bert", dtype=torch.float64)
    kept = some_heads(model)
    if heads_first:
        slice_heads(model, kept)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.25)
    if not heads_first:
        slice_heads(model, kept)
    other = pico_model("bert", dtype=torch.float64)
    mlpfusion.compress(other, mlpfusion.Fusion(), keep_ratio=0.25)
    torch.testing.assert_close(
        pico_outputs(model, "bert"), pico_outputs(masked(other, kept), "bert"), rtol=0, atol=1e-12
    )


def test_what_is_folded_stays_without_its_heads_and_there_is_no_stock_form():
    model = pico_model("bert", dtype=torch.float64)
    slice_heads(model, some_heads(model))
    with pytest.raises(InputError, match=f"`model` must have a stock form to be folded, but {NO_STOCK_FORM}"):
        mlpfusion.fold(model)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.25)
    expected = pico_outputs(model, "bert")
    with pytest.raises(InputError, match=f"`pad_to` must be left out, there is no stock form: {NO_STOCK_FORM}"):
        mlpfusion.fold(model, pad_to=8)
    with pytest.warns(UserWarning, match=f"{NO_STOCK_FORM}, so the folded model still needs `import mlpfusion`"):
        mlpfusion.fold(model)
    torch.testing.assert_close(pico_outputs(model, "bert"), expected, rtol=0, atol=1e-12)
    assert model_key(model.config) is not None


@pytest.fixture
def sliced(tmp_path):
    model = pico_model("bert")
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path / "sliced")
    return tmp_path / "sliced"


def test_the_command_compresses_a_sliced_checkpoint_and_tells_that_there_is_no_stock_form(sliced, tmp_path):
    assert call("compress", sliced, tmp_path / "cut", "--width", 14).exit_code == 0
    loaded = AutoModel.from_pretrained(tmp_path / "cut").eval()
    assert heads_key(loaded.config) == heads_key(AutoModel.from_pretrained(sliced).config)
    record = json.loads((tmp_path / "cut" / RECORD_FILE).read_text())
    assert record["no_stock_form"] == NO_STOCK_FORM


def test_a_stock_checkpoint_is_refused_with_the_reason(sliced, tmp_path):
    reason = f"must find a stock form of the model, but {NO_STOCK_FORM}"
    assert f"`--to` hf {reason}" in refused("export", sliced, tmp_path / "out")
    assert call("compress", sliced, tmp_path / "cut", "--width", 14).exit_code == 0
    assert f"`--to` hf {reason}" in refused("export", tmp_path / "cut", tmp_path / "out")
    said = refused("export", sliced, tmp_path / "out", "--to", "hf", "--pad-to", 8)
    assert "`--pad-to` must be left out for a model whose MLPs have one width, got 8" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "mpnet"])
def test_a_graph_holds_the_heads_that_are_left(name, tmp_path):
    extra = TARGETS["onnx"].needs
    assert extra is not None
    if extra.missing():
        pytest.skip(f"needs {extra.missing()}")
    model = model_of(name).float()
    slice_heads(model, some_heads(model)).save_pretrained(tmp_path / "sliced")
    done = call("export", tmp_path / "sliced", tmp_path / "out", "--to", "onnx")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / EXPORT_RECORD_FILE).read_text())
    assert record["difference"] < 1e-4
    key = heads_key(AutoModel.from_pretrained(tmp_path / "sliced").config)
    assert key is not None
    assert record["source_sha256"] == key.source_sha256
    assert "mlp_fusion" not in (tmp_path / "out" / "config.json").read_text()
