"""Model types without a row, composites among them: one tiny model of each through the whole pipeline."""

from collections import OrderedDict
from typing import Any, cast

import pytest
import torch
from detected import DETECTED, detected_config, detected_model, detected_outputs
from peft import LoraConfig, get_peft_model
from pico import pico_inputs, pico_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, SiglipConfig, SiglipForImageClassification

import mlpfusion
from mlpfusion.compression.preview.inspection import inspect_checkpoint
from mlpfusion.errors import InputError
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs
from mlpfusion.sites.sites import base_model, find_sites, linear_maps
from mlpfusion.sites.table import architecture_from_dict

FAST = ["mobilebert", "qwen2_5_vl", "wav2vec2-bert"]


def slow_but(names: list[str]) -> list[Any]:
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in DETECTED]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", slow_but(FAST))
def test_a_cut_model_is_saved_and_loaded_to_the_bit(name, dtype, tmp_path):
    if (name, dtype) == ("deberta", torch.bfloat16):
        pytest.skip("transformers' DeBERTa does not run in bf16")
    source, out = tmp_path / "source", tmp_path / "out"
    detected_model(name).save_pretrained(source)
    kind = type(detected_model(name))
    model = kind.from_pretrained(source, dtype=dtype).eval()
    before = detected_outputs(model, name)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    after = detected_outputs(model, name)
    assert not torch.equal(before, after)
    model.save_pretrained(out)
    again = kind.from_pretrained(out, dtype=dtype, device_map="cpu").eval()
    assert torch.equal(detected_outputs(again, name), after)
    shown = inspect_checkpoint(str(out))
    assert shown.compressed is not None
    assert len(shown.compressed["sites"]) == len(record.sites)
    assert sum(len(stack.widths) for stack in shown.stacks) == len(record.sites)


@pytest.mark.parametrize("name", slow_but(FAST))
def test_lora_trains_on_top_of_a_cut(name):
    model = detected_model(name)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    targets = [path for site in find_sites(model, architecture_from_dict(record.row)) for path in linear_maps(site)]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    detected_outputs(model, name, gradients=True).square().mean().backward()  # the adapters are in `model` itself
    gradients = [one.grad for name, one in adapted.named_parameters() if "lora_B" in name and one.grad is not None]
    assert len(gradients) == len(targets)
    assert all(bool(gradient.abs().max() > 0) for gradient in gradients)


@pytest.mark.parametrize("name", ["gemma3", "qwen3_vl", "shieldgemma2"])
def test_a_composite_model_is_calibrated_on_texts(name):
    """Its config has no hidden size, that of its text model has; the last of them gives logits first."""
    model = detected_model(name)
    ids = torch.randint(3, 60, (4, 9), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    record = mlpfusion.compress(model, mlpfusion.NTKMatch(refine_epochs=1), keep_ratio=0.5, calibration=batches)
    assert all("language_model.layers." in site.path for site in record.sites)
    assert all(site.metrics["output_error_refit"] < site.metrics["output_error_chosen"] for site in record.sites)


@pytest.mark.parametrize("sequential", [False, True])
def test_two_mlps_of_one_layer_are_calibrated_in_the_order_in_which_they_run(sequential):
    """A conformer's layer begins and ends with one; the row lists all first ones before all second ones."""
    model = detected_model("wav2vec2-bert")
    batches = [next(made_up_inputs(model))]
    method = mlpfusion.NTKMatch(match="none", refine_epochs=0)
    record = mlpfusion.compress(model, method, keep_ratio=0.5, calibration=batches, sequential=sequential)
    assert [site.path for site in record.sites] == [f"encoder.layers.{n}.ffn{k}" for k in (1, 2) for n in (0, 1)]
    assert all(site.metrics["output_error_refit"] < site.metrics["output_error_chosen"] for site in record.sites)


def test_two_towers_have_no_last_hidden_states_for_a_kernel():
    model = detected_model("clip")
    batch = next(inputs for inputs in made_up_inputs(model) if set(inputs) == {"input_ids", "pixel_values"})
    with pytest.raises(InputError, match="must give last hidden states of one size, .* a CLIPModel has"):
        mlpfusion.compress(model, mlpfusion.NTKMatch(), keep_ratio=0.5, calibration=[batch])
    mlpfusion.compress(model, mlpfusion.NTKMatch(match="none", refine_epochs=0), keep_ratio=0.5, calibration=[batch])


def test_a_model_of_images_is_its_own_base_model_where_its_encoder_takes_hidden_states():
    """So it can be calibrated on images; transformers' `base_model` of a DINOv3 is the encoder."""
    model = detected_model("dinov3_vit")
    assert model.base_model is not model
    assert base_model(model) is model
    batch = next(made_up_inputs(model))
    record = mlpfusion.compress(model, mlpfusion.NTKMatch(refine_epochs=1), keep_ratio=0.5, calibration=[batch])
    assert [site.path for site in record.sites] == ["model.layer.0", "model.layer.1"]


def test_a_tower_inside_is_no_base_model():
    """The class names a base that it has not; its tower has another config, and paths under it would not be those of
    the whole model."""
    model = SiglipForImageClassification(cast("SiglipConfig", detected_config("siglip")))
    assert model.base_model is model
    assert base_model(model) is model


class OtherLibrary(PreTrainedModel):
    """Wraps a module that knows nothing of transformers, as `TimmWrapperModel` does."""

    config_class = PreTrainedConfig
    base_model_prefix = "inner"
    main_input_name = "pixel_values"

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.inner = nn.Module()
        self.inner.blocks = nn.ModuleList(
            nn.Sequential(OrderedDict(fc1=nn.Linear(8, 16), act=nn.GELU(), fc2=nn.Linear(16, 8))) for _ in range(2)
        )
        self.post_init()


def test_sites_start_at_the_whole_model_where_another_library_is_inside():
    config: Any = PreTrainedConfig()
    config.hidden_size = 8
    model = OtherLibrary(config)
    assert base_model(model) is model
    sites = find_sites(model, find_architecture(model))
    assert [site.path for site in sites] == ["inner.blocks.0", "inner.blocks.1"]


def test_an_adapter_beside_a_wide_mlp_is_none():
    """Gemma 4 multiplies inside a block of the hidden size; no plain MLP computes that."""
    model = detected_model("gemma4_text")
    assert {stack.down for stack in find_architecture(model).stacks} == {"mlp.down_proj"}


def test_what_a_model_keeps_from_pass_to_pass_is_cut_from_its_graph():
    """RecurrentGemma keeps its states; with their graph it could not be copied, which the match does."""
    model = pico_model("bert")
    model.encoder.register_forward_hook(lambda module, _args, output: setattr(module, "kept", output[0]))
    record = mlpfusion.compress(model, mlpfusion.NTKMatch(refine_epochs=1), width=14, calibration=[pico_inputs("bert")])
    assert len(record.sites) == 3
    assert model.encoder.kept.grad_fn is None
