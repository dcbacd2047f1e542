"""Compressed models with the tools that people use beside transformers: PEFT, accelerate, torch.compile."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pico import pico_inputs, pico_model, pico_outputs
from transformers import AutoModel, AutoModelForCausalLM

import mlpfusion
from mlpfusion.kinds.narrow import ScaledActivation


def fused(name: str, auto_class: Any = AutoModel) -> Any:
    model = pico_model(name, auto_class)
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", width=14)
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT 0.21 asks for it
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "qwen3"])
def test_lora_attaches_trains_merges_saves_and_reloads(name, tmp_path):
    model = fused(name, AutoModelForCausalLM)
    original = copy.deepcopy(model)
    scales = {n: m.output_scale.clone() for n, m in model.named_modules() if isinstance(m, ScaledActivation)}
    targets = {"gpt2": ["c_fc", "c_proj"], "opt": ["fc1", "fc2"]}.get(name, "all-linear")
    config = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2")
    lora = get_peft_model(model, config)
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
    merged.save_pretrained(tmp_path / "merged")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(pico_outputs(loaded, name), pico_outputs(merged, name))
    for path, scale in scales.items():
        assert torch.equal(loaded.get_submodule(path).output_scale, scale)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_device_map_loads_the_same_model(name, tmp_path):
    model = fused(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(pico_outputs(loaded, name).cpu(), pico_outputs(model, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_gives_the_same_logits(name):
    model = fused(name)
    compiled = torch.compile(model)
    inputs = pico_inputs(name)
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_a_training_step_moves_the_weights_and_not_the_scale():
    model = fused("bert").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(**pico_inputs("bert")).last_hidden_state.square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    for layer in ("encoder.layer.1", "encoder.layer.2"):
        assert torch.equal(
            after[f"{layer}.intermediate.intermediate_act_fn.output_scale"],
            before[f"{layer}.intermediate.intermediate_act_fn.output_scale"],
        )
        assert not torch.equal(after[f"{layer}.output.dense.weight"], before[f"{layer}.output.dense.weight"])
