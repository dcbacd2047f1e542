"""Tiny random models of every architecture of the table, built from transformers' own configs."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from mlpfusion.sites.sites import Site, find_sites
from mlpfusion.sites.table import ARCHITECTURES

HIDDEN, WIDTH, VOCAB = 32, 56, 67

_TEXT = {"vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_USUAL = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": WIDTH, **_TEXT}
_BERT = {**_USUAL, "hidden_dropout_prob": 0.1, "type_vocab_size": 2}
_LLAMA = {**_USUAL, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {"d_model": HIDDEN, "d_kv": 8, "d_ff": WIDTH, "num_layers": 3, "num_heads": 4, **_TEXT}
_SIDES = ("encoder", "decoder")

PICO: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": (
        "bart",
        {"d_model": HIDDEN, "decoder_start_token_id": 2, **_TEXT}
        | {f"{side}_layers": 3 for side in _SIDES}
        | {f"{side}_attention_heads": 4 for side in _SIDES}
        | {"encoder_ffn_dim": WIDTH, "decoder_ffn_dim": 60},
    ),
    "bert": ("bert", _BERT),
    "deberta-v2": ("deberta-v2", {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "distilbert": ("distilbert", {"dim": HIDDEN, "n_layers": 3, "n_heads": 4, "hidden_dim": WIDTH, **_TEXT}),
    "electra": ("electra", {**_BERT, "embedding_size": 16}),
    "gemma2": ("gemma2", {**_LLAMA, "query_pre_attn_scalar": 8}),
    "gemma3_text": ("gemma3_text", {**_LLAMA, "query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 3}),
    "gpt2": ("gpt2", {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_inner": WIDTH, "n_positions": 64, **_TEXT}),
    "gpt_neox": ("gpt_neox", _USUAL),
    "llama": ("llama", _LLAMA),
    "llama-biased": ("llama", {**_LLAMA, "mlp_bias": True}),
    "mistral": ("mistral", _LLAMA),
    "modernbert": ("modernbert", {**_USUAL, "cls_token_id": 1, "sep_token_id": 2}),
    "olmo2": ("olmo2", _LLAMA),
    "opt": (
        "opt",
        {"hidden_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "ffn_dim": WIDTH, **_TEXT}
        | {"num_hidden_layers": 3, "num_attention_heads": 4},
    ),
    "phi": ("phi", _USUAL),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA),
    "roberta": ("roberta", _BERT),
    "smollm3": ("smollm3", {**_LLAMA, "layer_types": ["full_attention"] * 3}),
    "t5": ("t5", {**_T5, "feed_forward_proj": "relu", "decoder_start_token_id": 0}),
    "t5-gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0}),
    "vit": (
        "vit",
        {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": WIDTH}
        | {"image_size": 8, "patch_size": 4},
    ),
    "xlm-roberta": ("xlm-roberta", _BERT),
}


# A plain encoder, one with a decoder, transposed maps, a gated decoder, a gated one with an encoder.
SEVERAL = ("bert", "bart", "gpt2", "llama", "t5-gated")


def others_slow(names: Iterable[str] = PICO, quick: Iterable[str] = SEVERAL) -> list[Any]:
    """`names` to parametrize a test by; those not in `quick` are slow: CI runs them."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pico_config(name: str) -> PreTrainedConfig:
    model_type, overrides = PICO[name]
    return AutoConfig.for_model(model_type, **overrides)


def pico_model(name: str, auto_class: Any = AutoModel, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model in eval mode with weights large enough for its logits to differ between inputs.

    Typed `Any` because tests reach for modules by attribute, which no type checker can follow.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto_class.from_config(pico_config(name))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for parameter in model.parameters():  # not the rotary buffers, which from_pretrained keeps in fp32 as well
            parameter.data = parameter.data.to(dtype)
    return model.eval()


def pico_inputs(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, VOCAB, (2, 7), generator=generator)
    ids[:, -1] = 2  # the classification heads of BART and T5 read the state at the end of sequence
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {"decoder_input_ids": ids} if name in ("bart", "t5", "t5-gated") else inputs


@torch.no_grad()
def pico_outputs(model: Any, name: str) -> torch.Tensor:
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value for key, value in pico_inputs(name).items()
    }
    outputs = model(**inputs, use_cache=False) if hasattr(model.config, "use_cache") else model(**inputs)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def sites_of(model: Any) -> list[Site]:
    """All MLPs of a model, by the row of its architecture."""
    return find_sites(model, ARCHITECTURES[model.config.model_type])
