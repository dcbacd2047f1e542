"""Routers are found by their place and shape, and are what a run shows to weigh the experts."""

import re
from typing import Any

import pytest
import torch
from detected import detected_model
from mixtures import mixture_model, slow_but
from torch import nn
from transformers import AutoConfig, AutoModel

from mlpfusion.errors import InputError
from mlpfusion.sites.mixtures.experts import expert_modules
from mlpfusion.sites.mixtures.routers import router_parameters
from mlpfusion.sites.mixtures.routing import watch_mixtures

TINY = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
TINY |= {"num_hidden_layers": 2, "vocab_size": 67, "pad_token_id": 0}


def reaching(tensor: torch.Tensor, model: nn.Module) -> set[str]:
    values = {name: value for name, value in model.named_parameters() if value.requires_grad}
    gradients = torch.autograd.grad(tensor.sum(), list(values.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(values, gradients, strict=True) if gradient is not None}


@pytest.mark.parametrize("name", slow_but("gpt_oss", "llama4_text", "qwen2_moe"))
def test_routers_reach_the_weights_of_the_experts_and_not_what_enters_them(name):
    """In Llama 4, where the weights multiply what enters the experts, not what enters the block around them."""
    model = mixture_model(name)
    blocks = [model.get_submodule(path.rpartition(".")[0]) for path in expert_modules(model)]
    entered: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _module, args: entered.append(args[0]))
    with watch_mixtures(model, expert_modules(model)) as seen:
        model(input_ids=torch.arange(3, 12)[None], use_cache=False)
    runs = [run.routing for run in seen.values()]
    weights = [run.inputs if name == "llama4_text" else run.weights for run in runs]
    shown = set().union(
        *(reaching(one, model) - reaching(inputs, model) for one, inputs in zip(weights, entered, strict=True))
    )
    assert shown == {name for name, value in router_parameters(model).items() if value.requires_grad}
    assert shown


def names(model: nn.Module) -> set[str]:
    return {re.sub(r"\d+", "N", name) for name in router_parameters(model)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "switch_transformers",
            {f"{side}.block.N.layer.N.mlp.router.classifier.weight" for side in ("encoder", "decoder")},
        ),
        ("nllb-moe", {f"{side}.layers.N.ffn.router.classifier.weight" for side in ("encoder", "decoder")}),
    ],
)
def test_routers_of_experts_kept_in_every_way(name, expected):
    assert names(detected_model(name)) == expected


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        (  # the shared expert has as many neurons as there are experts, and a gate of its own
            "qwen2_moe",
            {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 4},
            {"layers.N.mlp.gate.weight"},
        ),
        (  # the router stands beside attention, norms and a dense MLP; a head is as wide as there are experts
            "gemma4_text",
            {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24}
            | {"layer_types": ["full_attention"] * 2, "global_head_dim": 8, "hidden_size_per_layer_input": 0}
            | {"num_kv_shared_layers": 0, "head_dim": 8},
            {"layers.N.router.scale", "layers.N.router.per_expert_scale", "layers.N.router.proj.weight"},
        ),
        # attention is a mixture too, of no MLPs
        ("jetmoe", {"num_local_experts": 4, "kv_channels": 8}, {"layers.N.mlp.router.layer.weight"}),
        (
            "ernie4_5_moe",
            {"moe_num_experts": 4, "moe_intermediate_size": 24},
            {"layers.N.mlp.gate.weight", "layers.N.mlp.gate.moe_statics.e_score_correction_bias"},
        ),
    ],
)
def test_all_of_a_router_is_found_and_nothing_beside_it(name, overrides, expected):
    model = AutoModel.from_config(AutoConfig.for_model(name, **TINY, **overrides))
    assert names(model) == expected


def test_without_a_mixture_there_is_none_and_a_mixture_without_a_router_is_told():
    assert router_parameters(detected_model("gemma")) == {}
    alone: Any = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)] * 2)})})
    with pytest.raises(InputError, match="no router is found beside the experts at mlp.experts"):
        router_parameters(alone)
