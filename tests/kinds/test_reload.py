"""Compressed models of every architecture go through save_pretrained and from_pretrained and come back the same."""

import json
from typing import Any

import pytest
import torch
from detected import detected_model, detected_outputs
from edit_key import change_key
from pico import PICO, pico_config, pico_model, pico_outputs
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto import modeling_auto

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.narrow import ScaledActivation

HEADS = {
    "base": (AutoModel, modeling_auto.MODEL_MAPPING_NAMES),
    "causal": (AutoModelForCausalLM, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "seq2seq": (AutoModelForSeq2SeqLM, modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    "classification": (
        AutoModelForSequenceClassification,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ),
    "image": (AutoModelForImageClassification, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
}
CASES = [
    (name, head) for name, (model_type, _) in PICO.items() for head, (_, names) in HEADS.items() if model_type in names
]
WIDTH = 14


def fused(name: str, auto_class: Any = AutoModel, dtype=torch.float32, **options) -> Any:
    model = pico_model(name, auto_class, dtype=dtype)
    mlpfusion.compress(model, mlpfusion.Fusion(), **{"layers": "last:2", "width": WIDTH, **options})
    return model


def scales(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {n: m.output_scale for n, m in model.named_modules() if isinstance(m, ScaledActivation)}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize(("name", "head"), CASES)
def test_reload_is_bit_exact(name, head, dtype, tmp_path):
    auto_class = HEADS[head][0]
    model = fused(name, auto_class, dtype)
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path, dtype=dtype)
    assert not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key
    assert torch.equal(pico_outputs(loaded, name), pico_outputs(model, name))


@pytest.mark.parametrize("name", PICO)
def test_the_scale_is_exact_after_a_bf16_load_and_never_trained(name, tmp_path):
    model = fused(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert len(scales(loaded)) == len(scales(model)) > 0
    for key, scale in scales(loaded).items():
        assert scale.dtype == torch.int32
        assert torch.equal(scale, scales(model)[key])
    assert not any("output_scale" in key for key, _ in loaded.named_parameters())
    assert all(parameter.requires_grad for parameter in loaded.parameters() if parameter.is_floating_point())


def test_a_cluster_size_that_bf16_cannot_hold_survives_a_bf16_load(tmp_path):
    config = pico_config("bert")
    config.intermediate_size = 500
    model = AutoModel.from_config(config)
    mlpfusion.compress(model, mlpfusion.Fusion(), width=4)
    for scale in scales(model).values():
        scale.copy_(torch.tensor([463, 1, 1, 35]))  # bf16 has 462 and 464
    model.save_pretrained(tmp_path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        assert {tuple(scale.tolist()) for scale in scales(loaded).values()} == {(463, 1, 1, 35)}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "t5"])
def test_one_checkpoint_serves_base_and_head_classes(name, tmp_path):
    model = fused(name)
    model.save_pretrained(tmp_path)
    head = {"gpt2": "causal", "llama": "causal", "t5": "seq2seq"}.get(name, "classification")
    loaded = HEADS[head][0].from_pretrained(tmp_path)
    for path, scale in scales(model).items():
        assert torch.equal(loaded.base_model.get_submodule(path).output_scale, scale)
    loaded.save_pretrained(tmp_path / "head")
    again = AutoModel.from_pretrained(tmp_path / "head")
    assert torch.equal(pico_outputs(again, name), pico_outputs(model, name))


def test_an_encoder_alone_loads_from_the_checkpoint_of_both(tmp_path):
    from transformers import T5EncoderModel

    model = fused("t5")
    model.save_pretrained(tmp_path)
    encoder = T5EncoderModel.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    expected = model.get_submodule("encoder")(ids).last_hidden_state
    assert torch.equal(encoder(ids).last_hidden_state, expected)


def test_from_config_builds_the_narrow_model():
    model = fused("llama")
    built = AutoModel.from_config(model.config)
    assert built.layers[0].mlp.up_proj.weight.shape == (56, 32)
    assert built.layers[2].mlp.up_proj.weight.shape == (WIDTH, 32)
    assert built.layers[2].mlp.act_fn.output_scale.tolist() == [1] * WIDTH
    assert torch.isfinite(built.layers[2].mlp.up_proj.weight).all()


def test_different_widths_in_different_layers_reload(tmp_path):
    model = pico_model("bart")  # the two stacks have widths 56 and 60
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    assert {site.width for site in record.sites} == {28, 30}
    model.save_pretrained(tmp_path)
    assert torch.equal(pico_outputs(AutoModel.from_pretrained(tmp_path), "bart"), pico_outputs(model, "bart"))


def test_the_config_keeps_the_original_width_and_the_parameter_counts(tmp_path):
    model = fused("bert")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["intermediate_size"] == pico_config("bert").intermediate_size
    site = config["mlp_fusion"]["sites"]["encoder.layer.1"]
    parameters = WIDTH * (2 * 32 + 1) + 32
    assert site == {
        "kind": "narrow",
        "intermediate_size": WIDTH,
        "original_size": 56,
        "scale": "cluster-sizes",
        "num_parameters": parameters,
    }


@pytest.mark.parametrize("method", [mlpfusion.NeuronPruning(), mlpfusion.RandomNeurons(), mlpfusion.Clustering()])
def test_methods_without_a_scale_reload_too(method, tmp_path):
    model = pico_model("gpt2")
    mlpfusion.compress(model, method, keep_ratio=0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not scales(loaded)
    assert torch.equal(pico_outputs(loaded, "gpt2"), pico_outputs(model, "gpt2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: key.update(version=3), "`mlp_fusion.version` must be between 1 and 2, got 3"),
        (lambda key: key.update(extra=1), "`mlp_fusion` must have exactly the keys"),
        (lambda key: key.pop("method"), "`mlp_fusion` must have exactly the keys"),
        (lambda key: key.update(source_sha256="abc"), "source_sha256` must be 64 hexadecimal digits, got 'abc'"),
        (lambda key: key["sites"]["layers.2"].update(num_parameters=7), "wants 7 parameters at layers.2"),
        (
            lambda key: key["sites"]["layers.2"].update(intermediate_size=0),
            "must be a whole number of at least 1, got 0",
        ),
        (
            lambda key: key["sites"]["layers.2"].update(intermediate_size=99),
            "`intermediate_size` of layers.2 must be at most 56, got 99",
        ),
        (lambda key: key["sites"].update({"layers.9": key["sites"]["layers.2"]}), "must name layers of the model"),
        (lambda key: key.update(sites={}), "`mlp_fusion.sites` must name at least one layer"),
        (lambda key: key.update(architecture={}), "must have the one key `stacks`"),
    ],
)
def test_a_damaged_key_is_refused_at_load(change, message, tmp_path):
    fused("llama").save_pretrained(tmp_path)
    change_key(tmp_path, change)
    with pytest.raises(InputError, match=message):
        AutoModel.from_pretrained(tmp_path)


def change_weights(folder, change) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_without_its_scales_is_refused(tmp_path):
    fused("llama").save_pretrained(tmp_path)
    change_weights(
        tmp_path, lambda weights: {k: v for k, v in weights.items() if k != "layers.1.mlp.act_fn.output_scale"}
    )
    with pytest.raises(InputError, match="must hold the scales of every scaled block.*layers.1"):
        AutoModel.from_pretrained(tmp_path)


def test_a_scale_that_the_key_does_not_name_is_refused(tmp_path):
    fused("llama").save_pretrained(tmp_path)
    change_key(tmp_path, lambda key: key["sites"]["layers.1"].update(scale="none"))
    with pytest.raises(InputError, match="must hold the scales of every scaled block.*layers.1"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [0, -3, 50])
def test_a_scale_that_is_no_partition_of_the_neurons_is_refused(value, tmp_path):
    fused("llama").save_pretrained(tmp_path)

    def spoil(weights):
        weights["layers.1.mlp.act_fn.output_scale"][0] = value
        return weights

    change_weights(tmp_path, spoil)
    with pytest.raises(InputError, match="`output_scale` at layers.1 must be at least 1 and sum up to 56"):
        AutoModel.from_pretrained(tmp_path)


def mpnet(folder) -> Any:
    model = detected_model("mpnet")
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    model.save_pretrained(folder)
    return model


def test_the_row_in_the_key_decides_where_a_newer_transformers_finds_none(tmp_path, monkeypatch):
    model = mpnet(tmp_path)
    monkeypatch.setattr("mlpfusion.sites.detect.all_stacks", lambda _model: {})
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(detected_outputs(loaded, "mpnet"), detected_outputs(model, "mpnet"))
    with pytest.raises(InputError, match="found none in MPNetModel"):
        mlpfusion.compress(detected_model("mpnet"), mlpfusion.Fusion(), keep_ratio=0.5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"intermediate_size": 64}, "must name in `width_key` the entry of the config that holds the original width"),
        ({"hidden_size": 48}, "wants 1852 parameters at encoder.layer.0, the model has 2764"),
        ({"num_hidden_layers": 1}, "must name layers of the model"),
    ],
)
def test_a_default_that_a_newer_transformers_has_changed_is_a_mismatch(config, message, tmp_path):
    mpnet(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | config))
    with pytest.raises(InputError, match=message):
        AutoModel.from_pretrained(tmp_path)


def test_a_module_that_a_newer_transformers_calls_otherwise_is_named(tmp_path):
    mpnet(tmp_path)
    change_key(tmp_path, lambda key: key["architecture"]["stacks"][0].update(up="intermediate.linear"))
    with pytest.raises(InputError, match="must have intermediate.linear as `up`"):
        AutoModel.from_pretrained(tmp_path)
