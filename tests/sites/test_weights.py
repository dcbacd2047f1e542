"""Where a weight is kept: an MLP read straight from a file is the one that is read from the loaded model."""

import pytest
import torch
from pico import PICO, pico_model, sites_of
from safetensors import safe_open
from transformers import AutoModel

import mlpfusion
from mlpfusion.checkpoint.weights import loaded_names
from mlpfusion.kinds.narrow import read_block
from mlpfusion.mlp import MLP
from mlpfusion.sites.sites import base_model, linear_maps, mlp_in, read_mlp, site_module
from mlpfusion.sites.weights import ModelTensors, written

FUSED, TRANSPOSED = "modernbert", "gpt2"


class OpenFile:
    """The tensors of an open safetensors file by the names in the base model; each is read when it is asked for."""

    def __init__(self, opened, model):
        prefix = "" if base_model(model) is model else f"{model.base_model_prefix}."
        names = loaded_names(model, opened.keys())
        self.names = {loaded.removeprefix(prefix): name for name, loaded in names.items() if loaded is not None}
        self.opened = opened

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.opened.get_tensor(self.names[name])

    def __contains__(self, name: object) -> bool:
        return name in self.names


def assert_same_bits(found: MLP, expected: MLP) -> None:
    tensors = expected.tensors()
    assert found.tensors().keys() == tensors.keys()
    for name, tensor in found.tensors().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name]), name


@pytest.mark.parametrize("name", PICO)
def test_an_mlp_in_an_open_file_is_that_of_the_loaded_model(name, tmp_path):
    pico_model(name).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        state = OpenFile(opened, model)
        for site in sites_of(model):
            activation = site_module(model, site, "activation")
            assert_same_bits(mlp_in(state, site, activation), read_mlp(model, site))


@pytest.mark.parametrize("name", PICO)
def test_written_is_what_the_model_keeps(name):
    model = pico_model(name)
    base = base_model(model)
    for site in sites_of(model):
        found = written(site.weights, read_mlp(model, site).tensors())
        kept = {
            f"{path}.{leaf}": p for path in linear_maps(site) for leaf, p in base.get_submodule(path).named_parameters()
        }
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())


@pytest.mark.parametrize("name", ["bert", FUSED, TRANSPOSED, "llama"])
def test_what_is_read_shares_memory_with_the_model(name):
    model = pico_model(name)
    site = sites_of(model)[0]
    kept = {
        p.untyped_storage().data_ptr() for path in linear_maps(site) for p in model.get_submodule(path).parameters()
    }
    assert {tensor.untyped_storage().data_ptr() for tensor in read_mlp(model, site).tensors().values()} == kept


@pytest.mark.parametrize("name", ["bert", FUSED, TRANSPOSED, "llama-biased"])
def test_the_weights_of_a_low_rank_block_are_those_of_the_maps_that_it_replaced(name):
    model = pico_model(name)
    sites = sites_of(model)
    mlpfusion.compress(model, mlpfusion.SVD(), keep_ratio=0.5)
    again = sites_of(model)
    assert again == sites
    state, weights = ModelTensors(base_model(model)), sites[0].weights
    shapes = {weight.field: tuple(weight.view(state[weight.name]).shape) for weight in weights if weight.name in state}
    block = read_block(model, again[0])
    assert shapes == {field: tuple(tensor.shape) for field, tensor in block.tensors().items()}


def test_halves_and_layouts_are_those_of_the_architecture():
    fused, transposed = (sites_of(pico_model(name))[0].weights for name in (FUSED, TRANSPOSED))
    halves = {weight.field: weight.half for weight in fused if not weight.is_bias}
    assert halves == {"gate": 0, "up": 1, "down": None}
    assert [weight.transposed for weight in transposed] == [not weight.is_bias for weight in transposed]


def test_a_name_that_leads_to_no_tensor_is_a_key_error():
    model = pico_model("llama")
    site = sites_of(model)[0]
    state = ModelTensors(base_model(model))
    absent = next(weight.name for weight in site.weights if weight.is_bias)
    assert absent not in state
    with pytest.raises(KeyError):
        state[absent]
