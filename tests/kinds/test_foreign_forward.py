"""Fused kernels of other packages in the place of a block's own forward pass, put there as Liger and Unsloth do."""

import copy
import functools
import importlib.util
import sys
import types

import pytest
import torch
from mixtures import fused_mixture, mixture_logits
from pico import pico_inputs, pico_model
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.foreign_forward import check_forward

LEFT_OUT = "`model` must run its compressed LlamaMLP itself, a forward pass of {} leaves out its constants: .*fold"
BY_KERNELS = LEFT_OUT.format("some_kernels")
# What a package of kernels does: its own function, and a module without an activation.
KERNELS = """
from torch import nn
from torch.nn.functional import silu

class FusedMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))

def in_parts(self, x):
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
"""


@pytest.fixture
def kernels(monkeypatch):
    module = types.ModuleType("some_kernels")
    exec(KERNELS, module.__dict__)
    monkeypatch.setitem(sys.modules, "some_kernels", module)
    return module


def cut(method=mlpfusion.Fusion):
    """A pico Llama with constants in its blocks."""
    model = pico_model("llama", auto_class=AutoModelForCausalLM)
    mlpfusion.compress(model, method(), width=14)
    return model


def logits(model):
    with torch.no_grad():
        return model(**pico_inputs("llama")).logits


def fuse(model, forward):
    """Binds a forward pass to every block, as Liger does to a model that exists."""
    for layer in model.model.layers:
        layer.mlp.__dict__["forward"] = forward.__get__(layer.mlp)


def test_a_kernel_that_comes_after_the_cut_is_refused_when_the_model_runs(kernels):
    model = cut()
    expected = logits(model)
    fuse(model, kernels.FusedMLP.forward)
    with pytest.raises(InputError, match=BY_KERNELS):
        model(**pico_inputs("llama"))
    folded = mlpfusion.fold(copy.deepcopy(model))
    torch.testing.assert_close(logits(folded), expected)
    assert not any(module._forward_pre_hooks for module in folded.modules())


def test_a_kernel_that_was_there_before_the_cut_is_refused_and_the_model_stays(kernels):
    model = pico_model("llama", auto_class=AutoModelForCausalLM)
    fuse(model, kernels.FusedMLP.forward)
    expected = logits(model)
    with pytest.raises(InputError, match=BY_KERNELS):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    assert torch.equal(logits(model), expected)
    mlpfusion.compress(model, mlpfusion.NeuronPruning(), width=14)  # has no constants
    model(**pico_inputs("llama"))


def test_a_class_whose_forward_was_replaced_is_refused_at_loading(kernels, tmp_path, monkeypatch):
    cut().save_pretrained(tmp_path / "cut")
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", kernels.FusedMLP.forward)
    with pytest.raises(InputError, match=BY_KERNELS):
        AutoModelForCausalLM.from_pretrained(tmp_path / "cut")


def test_a_class_that_was_replaced_is_refused_at_loading_and_cutting(kernels, tmp_path, monkeypatch):
    cut().save_pretrained(tmp_path / "cut")
    monkeypatch.setattr(modeling_llama, "LlamaMLP", kernels.FusedMLP)
    reason = "must have the MLPs of its class, got some_kernels.FusedMLP without mlp.act_fn: compress and fold"
    with pytest.raises(InputError, match=reason):
        AutoModel.from_pretrained(tmp_path / "cut")
    with pytest.raises(InputError, match=reason):
        mlpfusion.compress(pico_model("llama"), mlpfusion.Fusion(), width=14)


def test_a_forward_that_calls_the_activation_is_welcome(kernels):
    model = cut()
    expected = logits(model)
    fuse(model, kernels.in_parts)
    torch.testing.assert_close(logits(model), expected)


def test_a_wrapper_around_the_own_forward_is_welcome():
    model = cut()
    expected = logits(model)
    for layer in model.model.layers:
        own = layer.mlp.forward
        layer.mlp.forward = functools.update_wrapper(functools.partial(own), own)  # as accelerate does
    assert torch.equal(logits(model), expected)


def test_experts_that_a_kernel_computes_are_refused(kernels):
    model = fused_mixture("mixtral")
    mixture_logits(model)
    for layer in model.model.layers:
        layer.mlp.experts.__dict__["forward"] = kernels.FusedMLP.forward.__get__(layer.mlp.experts)
    with pytest.raises(InputError, match="must run its compressed ScaledMixtralExperts itself"):
        mixture_logits(model)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel and triton")
def test_liger_on_a_compressed_model_is_refused_and_on_a_folded_one_not():
    from liger_kernel.transformers import apply_liger_kernel_to_llama  # pyright: ignore[reportMissingImports]

    model = cut()
    apply_liger_kernel_to_llama(rope=False, rms_norm=False, fused_linear_cross_entropy=False, model=model)
    with pytest.raises(InputError, match=LEFT_OUT.format("liger_kernel.transformers.swiglu")):
        model(**pico_inputs("llama"))
    for layer in mlpfusion.fold(model).model.layers:
        check_forward(layer.mlp)
