import copy
import json
import warnings

import pytest
import torch
from command import call
from pico import PICO, pico_model, pico_outputs
from transformers import AutoModel

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.record import RECORD_FILE


@pytest.mark.parametrize("name", PICO)
def test_a_folded_model_whose_layers_are_all_fused_is_stock(name, tmp_path):
    model = pico_model(name)
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    expected = pico_outputs(model, name)
    folded = mlpfusion.fold(copy.deepcopy(model))
    torch.testing.assert_close(pico_outputs(folded, name), expected, atol=1e-5, rtol=1e-5)
    assert not any("output_scale" in key for key in folded.state_dict())
    folded.save_pretrained(tmp_path)
    assert "mlp_fusion" not in (tmp_path / "config.json").read_text()
    stock = AutoModel.from_pretrained(tmp_path)
    assert stock.num_parameters() == model.num_parameters()
    torch.testing.assert_close(pico_outputs(stock, name), expected, atol=1e-5, rtol=1e-5)


def test_a_model_with_different_widths_says_that_it_still_needs_the_package(tmp_path):
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", width=14)
    expected = pico_outputs(model, "bert")
    with pytest.warns(UserWarning, match="the folded model still needs `import mlpfusion`"):
        mlpfusion.fold(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not any("output_scale" in key for key in loaded.state_dict())
    torch.testing.assert_close(pico_outputs(loaded, "bert"), expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_compressed_is_refused():
    with pytest.raises(InputError, match="`model` must be compressed by mlpfusion"):
        mlpfusion.fold(pico_model("bert"))


@pytest.mark.parametrize("name", PICO)
def test_padded_layers_of_different_widths_are_a_stock_model_with_the_same_outputs(name, tmp_path):
    model = pico_model(name).double()
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:1", width=14)
    expected = pico_outputs(model, name)
    folded = mlpfusion.fold(model, pad_to=1)
    torch.testing.assert_close(pico_outputs(folded, name), expected, atol=1e-12, rtol=1e-12)
    folded.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path, dtype=torch.float64)  # the angles of Gemma's positions stay fp32
    torch.testing.assert_close(pico_outputs(stock, name), expected, atol=1e-5, rtol=1e-5)


def test_padding_gives_the_smallest_multiple_that_holds_the_widest_layer():
    model = pico_model("llama")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    assert mlpfusion.fold(model, pad_to=8).config.intermediate_size == 16


@pytest.mark.parametrize("pad_to", [0, 1.5])
def test_a_multiple_below_one_or_not_whole_is_refused_and_nothing_changes(pad_to):
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:1", width=14)
    with pytest.raises(InputError, match="`pad_to`"):
        mlpfusion.fold(model, pad_to=pad_to)
    assert any("output_scale" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--width 14", None),
        ("--width 14 --layers last:1", "the layers have different widths"),
        ("--width 14 --layers last:1 --stream", "the layers have different widths"),
        ("--method svd --keep-ratio 0.5 --layers last:1", None),
        ("--method magnitude --keep-ratio 0.5 --layers last:1", None),
    ],
)
def test_the_record_of_a_cut_says_what_folding_it_gives(flags, reason, tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "model")
    call("compress", tmp_path / "model", tmp_path / "cut", *flags.split())
    assert json.loads((tmp_path / "cut" / RECORD_FILE).read_text())["no_stock_form"] == reason
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folded = mlpfusion.fold(AutoModel.from_pretrained(tmp_path / "cut"))
    assert hasattr(folded.config, "mlp_fusion") == (reason is not None)
    assert reason is None or any(reason in str(one.message) for one in caught)
