"""Low-rank and masked models: saved and loaded, trained, folded, refused where something is amiss."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from edit_key import change_key
from peft import LoraConfig, PeftModel, get_peft_model
from pico import pico_inputs, pico_model, pico_outputs
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.masked import MaskedConv1D, MaskedLinear

NAMES = ["bert", "gpt2", "llama", "modernbert", "t5", "t5-gated", "bart"]
METHODS = [mlpfusion.SVD(), mlpfusion.Magnitude(), mlpfusion.NTKSAP(num_rounds=2, num_draws=1)]
MASK_METHODS = METHODS[1:]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
every_mask_method = pytest.mark.parametrize("method", MASK_METHODS, ids=lambda method: type(method).__name__)


def compressed(name: str, method: Any, auto_class: Any = AutoModel, dtype=torch.float32) -> Any:
    model = pico_model(name, auto_class, dtype=dtype)
    mlpfusion.compress(model, method, layers="last:2", keep_ratio=0.25)
    return model


def masked_weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: m.weight for n, m in model.named_modules() if isinstance(m, MaskedLinear | MaskedConv1D)}


@pytest.mark.own_sums
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_masked_model_is_traced_while_it_trains_and_keeps_its_zeros(name):
    model = compressed(name, mlpfusion.Magnitude())
    model.config.return_dict = model.config.use_cache = False
    ids = pico_inputs(name)["input_ids"]
    traced: Any = torch.jit.trace(model, (ids,), strict=False)
    outputs = traced(ids)[0]
    torch.testing.assert_close(outputs, model(ids)[0])
    outputs.square().sum().backward()
    for weight in masked_weights(model).values():
        assert weight.grad is not None
        assert torch.all(weight.grad[weight == 0] == 0)


def train(model: Any, name: str) -> None:
    """Three AdamW steps with weight decay large enough to be seen."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        model(**pico_inputs(name)).last_hidden_state.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_reload_is_bit_exact(name, dtype, method, tmp_path):
    model = compressed(name, method, dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    types = {path: type(module) for path, module in model.named_modules()}
    assert {path: type(module) for path, module in loaded.named_modules()} == types
    assert torch.equal(pico_outputs(loaded, name), pico_outputs(model, name))
    assert torch.equal(pico_outputs(copy.deepcopy(loaded), name), pico_outputs(model, name))


@every_method
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_one_checkpoint_serves_other_heads_dtypes_and_device_maps(name, method, tmp_path):
    model = compressed(name, method)
    model.save_pretrained(tmp_path)
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.isfinite(pico_outputs(other, name)).all()
    mapped = AutoModel.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(pico_outputs(mapped, name).cpu(), pico_outputs(model, name))
    half, again = copy.deepcopy(model).bfloat16(), AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(pico_outputs(half, name), pico_outputs(again, name), atol=0.1, rtol=0.1)


def test_the_record_counts_what_is_stored_and_what_is_not_zero():
    matrices = 2 * 32 * 56
    record = mlpfusion.compress(pico_model("bert"), mlpfusion.SVD(), layers="last:2", keep_ratio=0.25)
    site = record.sites[0]
    assert (site.kind, site.rank, site.width) == ("low-rank", 5, 56)
    assert site.parameters == site.nonzero_parameters == 2 * 5 * (32 + 56) + 56 + 32
    assert record.original.parameters - record.compressed.parameters == 2 * (site.original_parameters - site.parameters)
    record = mlpfusion.compress(pico_model("bert"), mlpfusion.Magnitude(), layers="last:2", keep_ratio=0.25)
    assert record.original.parameters == record.compressed.parameters
    assert {site.kind for site in record.sites} == {"masked"}
    assert all(site.parameters == site.original_parameters == matrices + 88 for site in record.sites)
    assert sum(site.parameters - site.nonzero_parameters for site in record.sites) == round(0.75 * 2 * matrices)


@every_mask_method
@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero_in_training_also_after_a_reload(name, method, tmp_path):
    model = compressed(name, method)
    before = {path: weight.detach().clone() for path, weight in masked_weights(model).items()}
    assert len(before) >= 4
    train(model.train(), name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).train()
    train(loaded, name)
    for path, weight in masked_weights(loaded).items():
        assert torch.equal(weight == 0, before[path] == 0)
        assert not torch.equal(weight, before[path])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@every_method
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_lora_attaches_trains_saves_and_reloads(name, method, tmp_path):
    model = compressed(name, method, AutoModelForCausalLM)
    original = copy.deepcopy(model)
    targets = "all-linear" if name == "llama" else ["left", "right"] if method == METHODS[0] else ["c_fc"]
    fan_in_fan_out = targets == ["c_fc"]
    config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=fan_in_fan_out)
    lora = get_peft_model(model, config)
    adapted = [path for path, module in lora.named_modules() if hasattr(module, "lora_A")]
    assert any("layers.2.mlp" in path or "h.2.mlp" in path for path in adapted)
    optimizer = torch.optim.AdamW([p for p in lora.parameters() if p.requires_grad], lr=1e-2)
    inputs = pico_inputs(name)
    for _ in range(2):
        lora(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned = pico_outputs(lora.eval(), name)
    assert not torch.allclose(tuned, pico_outputs(original, name), atol=1e-3)
    lora.save_pretrained(tmp_path / "adapter")
    attached = PeftModel.from_pretrained(original, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(pico_outputs(attached, name), tuned)
    merged: Any = lora.merge_and_unload()
    torch.testing.assert_close(pico_outputs(merged, name), tuned, atol=1e-4, rtol=1e-4)


def test_a_merged_adapter_fills_the_zeros_and_that_is_told_at_load(tmp_path):
    model = compressed("llama", mlpfusion.Magnitude())
    with torch.no_grad():
        model.layers[2].mlp.up_proj.weight.add_(0.1)
    model.save_pretrained(tmp_path / "filled")
    with pytest.raises(InputError, match="the weights at layers.2 must have at least .* zeros, got .* call `fold`"):
        AutoModel.from_pretrained(tmp_path / "filled")
    mlpfusion.fold(model).save_pretrained(tmp_path / "folded")
    assert torch.equal(
        pico_outputs(AutoModel.from_pretrained(tmp_path / "folded"), "llama"), pico_outputs(model, "llama")
    )


@every_mask_method
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_folded_masked_model_is_stock_and_computes_the_same(name, method):
    model = compressed(name, method)
    expected = pico_outputs(model, name)
    mlpfusion.fold(model)
    assert not masked_weights(model)
    assert not hasattr(model.config, "mlp_fusion")
    assert torch.equal(pico_outputs(model, name), expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_low_rank_model_is_stock_at_its_original_size(name, tmp_path):
    model = compressed(name, mlpfusion.SVD())
    expected = pico_outputs(model, name)
    with pytest.warns(UserWarning, match="the factors were multiplied: the model has its original size again"):
        mlpfusion.fold(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in pico_model(name).modules()]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(pico_outputs(AutoModel.from_pretrained(tmp_path), name), expected, atol=1e-4, rtol=1e-4)


WITHOUT = """
import sys
from safetensors.torch import save_file
import torch
from transformers import AutoModel

low_rank, masked, out = sys.argv[1:]
try:
    AutoModel.from_pretrained(low_rank)
except RuntimeError as error:
    assert "size mismatch" in str(error) or "mismatched" in str(error), error
else:
    sys.exit("the factors were loaded without the package")
model = AutoModel.from_pretrained(masked).eval()
with torch.no_grad():
    save_file({"outputs": model(input_ids=torch.arange(3, 17).reshape(2, 7)).last_hidden_state}, out)
assert not [name for name in sys.modules if name.startswith("mlpfusion")]
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_without_the_package_factors_are_refused_and_zeros_load_as_weights(name, tmp_path):
    compressed(name, mlpfusion.SVD()).save_pretrained(tmp_path / "low-rank")
    model = compressed(name, mlpfusion.Magnitude())
    model.save_pretrained(tmp_path / "masked")
    paths = [str(tmp_path / part) for part in ("low-rank", "masked", "outputs.safetensors")]
    found = subprocess.run([sys.executable, "-c", WITHOUT, *paths], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 17).reshape(2, 7)).last_hidden_state
    torch.testing.assert_close(load_file(paths[2])["outputs"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda site: site.update(kind="sparse"),
            "kind` must be one of narrow, low-rank, masked, routed, narrow-experts, got 'sparse'",
        ),
        (lambda site: site.update(scale="none"), "must have exactly the keys kind, rank, num_parameters"),
        (lambda site: site.update(rank=0), "rank` must be a whole number of at least 1, got 0"),
        (lambda site: site.update(rank=99), "wants rank 99 at encoder.layer.2, the config allows at most 32"),
        (lambda site: site.update(rank=4), "wants 968 parameters at encoder.layer.2, the model has 792"),
    ],
)
def test_a_damaged_key_is_refused_at_load(change, message, tmp_path):
    compressed("bert", mlpfusion.SVD()).save_pretrained(tmp_path)
    change_key(tmp_path, lambda key: change(key["sites"]["encoder.layer.2"]))
    with pytest.raises(InputError, match=message):
        AutoModel.from_pretrained(tmp_path)


@every_method
def test_a_checkpoint_that_lost_a_weight_is_refused(method, tmp_path):
    compressed("bert", method).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = [name for name in weights if name.startswith("encoder.layer.2.output.dense") and "weight" in name]
    for name in lost:
        rest = {key: tensor for key, tensor in weights.items() if key != name}
        save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match=f"must hold all weights of compressed blocks, {name} is missing"):
            AutoModel.from_pretrained(tmp_path)


@every_method
def test_a_width_is_refused_for_methods_that_keep_it(method):
    options: list[tuple[dict[str, Any], str]] = [
        ({"width": 14}, "width"),
        ({"keep_ratio": 0.5, "round_to": 8}, "round_to"),
    ]
    for option, given in options:
        with pytest.raises(InputError, match=f"`{given}` must be left out for .*: give `keep_ratio`"):
            mlpfusion.compress(pico_model("bert"), method, **option)
