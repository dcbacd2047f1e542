"""Tiny mixtures of experts of many model types, which keep one tensor a matrix for all experts."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.aria import modeling_aria

import mlpfusion

WIDTH = 48  # of an expert; the kernels want multiples of 8, after a cut too

_USUAL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": WIDTH,
    "vocab_size": 67,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts_per_tok": 2,
}
_DEEPSEEK = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK |= {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": WIDTH,
}

# Model type -> overrides of the config. Some have shared experts or dense layers beside the mixtures. The tensors of
# Aria and gpt-oss are (experts, in, out); those of gpt-oss have biases, gate and up in turns, and clamps.
MIXTURES: dict[str, dict[str, Any]] = {
    "aria_text": {**_USUAL, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
    "deepseek_v2": {**_USUAL, **_DEEPSEEK, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    "deepseek_v3": {
        **_USUAL,
        **_DEEPSEEK,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "intermediate_size": 40,
    },
    "ernie4_5_moe": {
        **_USUAL,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": WIDTH,
        "moe_layer_start_index": 1,
    },
    "glm4_moe": {**_USUAL, "n_routed_experts": 4, "moe_intermediate_size": WIDTH, "first_k_dense_replace": 1},
    "gpt_oss": {**_USUAL, "num_local_experts": 4, "swiglu_limit": 0.3, "layer_types": ["full_attention"] * 3},
    "granitemoe": {**_USUAL, "num_local_experts": 4},
    "jamba": {**_USUAL, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    | {"mamba_d_state": 4, "mamba_dt_rank": 4},
    # dense, then two mixtures with shared experts; a router weighs tokens before they enter
    "llama4_text": {**_USUAL, "num_local_experts": 4, "intermediate_size_mlp": 40, "moe_layers": [1, 2]},
    "mixtral": {**_USUAL, "num_local_experts": 4},
    "olmoe": {**_USUAL, "num_experts": 4},
    "phimoe": {**_USUAL, "num_local_experts": 4},
    "qwen2_moe": {**_USUAL, "num_experts": 4, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_USUAL, "num_experts": 4, "moe_intermediate_size": WIDTH, "mlp_only_layers": [0]},
    "qwen3_5_moe_text": {
        **_USUAL,
        "num_experts": 4,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": 40,
    }
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


if hasattr(modeling_aria, "AriaGroupedExpertsGemm"):  # an older transformers keeps each matrix in a module of its own
    del MIXTURES["aria_text"]


def mixture_config(name: str) -> PreTrainedConfig:
    return AutoConfig.for_model(name, **copy.deepcopy(MIXTURES[name]))


def mixture_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A causal language model in eval mode with weights large enough for its experts to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(mixture_config(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def mixture_logits(model: Any) -> torch.Tensor:
    """Logits of two short texts."""
    ids = torch.randint(3, 67, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def fused_mixture(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same with half of the neurons of every expert, by Fusion."""
    model = mixture_model(name, dtype)
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    return model


def switch_model(dtype: torch.dtype = torch.float32) -> Any:
    """A Switch Transformer of three layers in the encoder and in the decoder, the second of each with four experts."""
    config = AutoConfig.for_model(
        "switch_transformers", d_model=32, d_kv=8, d_ff=56, num_layers=3, num_decoder_layers=3, num_heads=4,
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, vocab_size=67,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSeq2SeqLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def slow_but(*quick: str) -> list[Any]:
    """All types to parametrize a test by; those not in `quick` are slow: CI runs them."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in MIXTURES]


def trained_by_lora(model: Any, ids: torch.Tensor, rate: float) -> Any:
    """The model with LoRA on the tensors of its experts, after four steps in which its loss fell."""
    lora = LoraConfig(r=2, target_parameters=["experts.gate_up_proj", "experts.down_proj"], target_modules=[])
    tuned = get_peft_model(model, lora)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(4):
        loss = tuned(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    return tuned
