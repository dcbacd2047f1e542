"""Tiny configs of model types that have no row of their own; `inspect` proposes one."""

import copy
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from mlpfusion.checkpoint.read import model_class
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs

_TEXT = {"vocab_size": 67, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56, **_TEXT}
_LLAMA = {**_USUAL, "num_key_value_heads": 2, "head_dim": 8}
_BOTH = {"d_model": 32, "decoder_start_token_id": 2, **_TEXT} | {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 56))
}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 67, "bos_token_id": 1}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0, **_TEXT}
_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 67, "max_position_embeddings": 64}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 8, "patch_size": 4}
_MROPE = {**_LLAMA, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32}
_QWEN_VISION |= {"patch_size": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LLAMA4 = {**_LLAMA, **_EXPERTS, "moe_layers": [1], "intermediate_size_mlp": 40}
_LLAMA4_VISION = {**_VISION, "intermediate_size": 64, "vision_output_dim": 16}  # 4 patches are joined to one
_LLAMA4_VISION |= {"projector_input_dim": 16, "projector_output_dim": 16}

# Model type -> overrides of the config.
DETECTED: dict[str, dict[str, Any]] = {
    "albert": {**_USUAL, "embedding_size": 16},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 67},
    "camembert": _USUAL,
    "clip": {"text_config": _USUAL, "vision_config": _VISION, "projection_dim": 16},
    "clip_vision_model": _VISION,
    "codegen": {**_GPT, "rotary_dim": 4, "n_ctx": 64},
    "colpali": {
        "vlm_config": {
            "model_type": "paligemma",
            "text_config": {**_LLAMA, "model_type": "gemma"},
            "vision_config": {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
            "projection_dim": 32,
            "image_token_index": 66,
        }
    },
    "deberta": _USUAL,
    "dinov3_vit": {**_VISION, "num_hidden_layers": 2, "num_register_tokens": 1},
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 8, "patch_size": 4},
    "falcon": _USUAL,
    "flaubert": _XLM,
    "funnel": {"d_model": 32, "d_inner": 56, "n_head": 4, "d_head": 8, "block_sizes": [2, 2], "num_decoder_layers": 2}
    | {"vocab_size": 67},
    "gemma": _LLAMA,
    "gemma3": {
        "text_config": {**_LLAMA, "model_type": "gemma3_text", "layer_types": ["full_attention"] * 2},
        "vision_config": _VISION,
    },
    "gemma4_text": {**_LLAMA, "global_head_dim": 8, "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0}
    | {"vocab_size_per_layer_input": 67, "layer_types": ["full_attention"] * 2},
    "glm": _LLAMA,
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite": _LLAMA,
    "llava": {"text_config": {**_LLAMA, "model_type": "llama"}, "image_token_index": 66}
    | {"vision_config": {**_VISION, "model_type": "clip_vision_model"}},
    "m2m_100": _BOTH,
    "marian": _BOTH,
    "mbart": _BOTH,
    "mistral3": {"text_config": {**_LLAMA, "model_type": "mistral"}, "image_token_index": 66}
    | {"vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8}},
    "mobilebert": {**_USUAL, "embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "mpnet": _USUAL,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 67, "expansion_ratio": 2},
    "mt5": _T5,
    "nomic_bert": _USUAL,
    "pegasus": _BOTH,
    "phi3": _LLAMA,
    "qwen2_5_vl": {"text_config": _MROPE, "vision_config": _QWEN_VISION},
    "qwen3_vl": {"text_config": _MROPE, "vision_config": {**_QWEN_VISION, "deepstack_visual_indexes": [0]}},
    "shieldgemma2": {
        "text_config": {**_LLAMA, "model_type": "gemma3_text", "layer_types": ["full_attention"] * 2},
        "vision_config": _VISION,
        "yes_token_index": 3,
        "no_token_index": 4,
    },
    "siglip": {"text_config": {**_USUAL, "projection_size": 16}, "vision_config": _VISION},
    "starcoder2": _LLAMA,
    "swin": {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4]}
    | {"window_size": 4},
    "t5gemma": {"encoder": _LLAMA, "decoder": _LLAMA, "vocab_size": 67},
    "wav2vec2-bert": {**_USUAL, "feature_projection_input_dim": 16},
    "whisper": {**_BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32},
    "xglm": {"d_model": 32, "ffn_dim": 56, "num_layers": 2, "attention_heads": 4, **_TEXT},
    "xlm": _XLM,
}
# Types whose width stands in no entry of their config.
WITHOUT_KEY = ("bloom", "dinov2", "flaubert", "mpt", "swin", "xlm")
# Mixtures of experts: the first three have shared experts beside them; in all but Qwen2 and Mixtral some layers have
# none.
EXPERTS: dict[str, dict[str, Any]] = {
    "llama4": {"text_config": _LLAMA4, "vision_config": _LLAMA4_VISION, "image_token_index": 66},
    "llama4_text": _LLAMA4,
    "qwen2_moe": {**_LLAMA, **_EXPERTS, "shared_expert_intermediate_size": 40},
    "qwen3_moe": {**_LLAMA, **_EXPERTS, "decoder_sparse_step": 2},
    "switch_transformers": {**_T5, "num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "mixtral": {**_LLAMA, **_EXPERTS},
    "nllb-moe": {**_BOTH, "num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
}


def detected_config(name: str) -> PreTrainedConfig:
    overrides = {**DETECTED, **EXPERTS}[name]
    return AutoConfig.for_model(name, **copy.deepcopy(overrides))  # older config classes write into what they are given


def detected_model(name: str) -> Any:
    """A model of the base class in eval mode, in fp32."""
    config = detected_config(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model_class(config)(config).eval()


def detected_outputs(model: Any, name: str, *, gradients: bool = False) -> torch.Tensor:
    """What the model makes of the first made-up inputs on which it runs."""
    for inputs in made_up_inputs(model):
        try:
            with torch.set_grad_enabled(gradients):
                return model(**inputs)[0]
        except (AttributeError, ValueError):  # it wants more than these
            continue
    raise AssertionError(f"{name} runs on none")


def loaded(folder: Any, name: str) -> Any:
    """The model in `folder`, read by the class that `detected_model` has."""
    return getattr(transformers, type(detected_model(name)).__name__).from_pretrained(folder)
