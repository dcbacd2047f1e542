"""Blocks with two matched diagonals in every architecture: save, load in any dtype, fold, and damaged files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_key import change_key
from pico import others_slow, pico_inputs, pico_model, pico_outputs
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.narrow import MatchedActivation

METHOD = mlpfusion.NTKMatch(refine_epochs=2)


def matched(name: str, dtype: torch.dtype = torch.float32, layers: str = "last:2", **options: Any) -> Any:
    model = pico_model(name, dtype=dtype)
    batches = [pico_inputs(name, seed) for seed in range(3)]
    batches = [{k: x.to(dtype) if x.is_floating_point() else x for k, x in batch.items()} for batch in batches]
    mlpfusion.compress(model, METHOD, layers=layers, width=14, calibration=batches, **options)
    return model


def diagonals(model: Any) -> dict[str, torch.Tensor]:
    modules = {name: module for name, module in model.named_modules() if isinstance(module, MatchedActivation)}
    return {
        f"{name}.{side}": getattr(m, side) for name, m in modules.items() for side in ("input_scale", "output_scale")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", others_slow())
def test_diagonals_are_exact_after_a_bf16_load_and_outputs_after_one_in_the_same_dtype(name, dtype, tmp_path):
    model = matched(name, dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert torch.equal(pico_outputs(loaded, name), pico_outputs(model, name))
    rounded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = diagonals(model)
    assert len(expected) > 0
    assert any(not torch.equal(scale, scale.bfloat16().float()) for scale in expected.values())
    for key, scale in diagonals(rounded).items():
        assert scale.dtype == torch.float32
        assert torch.equal(scale, expected[key])
    assert not any("scale" in key for key, _ in rounded.named_parameters())


def test_a_cast_keeps_the_diagonals():
    model = matched("llama")
    expected = {key: scale.clone() for key, scale in diagonals(model).items()}
    model.to(torch.bfloat16)
    assert all(torch.equal(scale, expected[key]) for key, scale in diagonals(model).items())


@pytest.mark.parametrize("name", others_slow())
def test_a_folded_model_is_stock_and_computes_the_same(name, tmp_path):
    model = matched(name, layers="all")
    expected = pico_outputs(model, name)
    folded = mlpfusion.fold(copy.deepcopy(model))
    torch.testing.assert_close(pico_outputs(folded, name), expected, atol=1e-4, rtol=1e-4)
    folded.save_pretrained(tmp_path)
    assert "mlp_fusion" not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(pico_outputs(AutoModel.from_pretrained(tmp_path), name), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sequential", [False, True])
def test_the_same_seed_gives_the_same_model(sequential):
    first, second, other = (matched("llama", seed=seed, sequential=sequential).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def saved(folder: Path) -> Path:
    matched("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_diagonal_that_is_not_positive_is_refused(value, tmp_path):
    weights = load_file(saved(tmp_path) / "model.safetensors")
    weights["layers.1.mlp.act_fn.input_scale_bits"][0] = torch.tensor(value).view(torch.int32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the `input_scale` at layers.1 must be positive and finite, got"):
        AutoModel.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_diagonal_is_refused(tmp_path):
    weights = load_file(saved(tmp_path) / "model.safetensors")
    del weights["layers.1.mlp.act_fn.output_scale_bits"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="must hold the scales of every scaled block.*layers.1"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("scale", "message"), [("cubic", "must be one of none, cluster-sizes, matched, got 'cubic'"), (3, "text")]
)
def test_an_unknown_scale_in_the_key_is_refused(scale, message, tmp_path):
    change_key(saved(tmp_path), lambda key: key["sites"]["layers.1"].update(scale=scale))
    with pytest.raises(InputError, match=message):
        AutoModel.from_pretrained(tmp_path)
