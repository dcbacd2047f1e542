import copy

import pytest
import torch
from pico import PICO, pico_model, pico_outputs
from transformers import AutoModel

import mlpfusion
from mlpfusion.errors import InputError


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
