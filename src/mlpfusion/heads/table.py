"""The attentions whose heads can be removed: one row of data each."""

from dataclasses import dataclass

from mlpfusion.errors import InputError


@dataclass(frozen=True)
class Attention:
    """Where the layers of a model keep an attention, and what it remembers of its heads.

    `layer` is the path of a layer from the base model, `{}` standing for its number; the other paths start there. Where
    `query`, `key` and `value` are the same, one map holds the three, one after the other. `module` computes: it has the
    rows of one head in its attribute `head_size`, the number of query heads in those of `counts`, and that of their
    rows in those of `widths`. `bias_place` is the place of an input with a bias a head for the scores, if it takes one.
    """

    layer: str
    module: str
    query: str
    key: str
    value: str
    output: str
    head_size: str = "head_dim"
    counts: tuple[str, ...] = ()
    widths: tuple[str, ...] = ()
    bias_place: int | None = None


def _bert() -> Attention:
    inner = "attention.self"
    return Attention(
        *("encoder.layer.{}", inner, f"{inner}.query", f"{inner}.key", f"{inner}.value", "attention.output.dense"),
        head_size="attention_head_size",
        counts=("num_attention_heads",),
        widths=("all_head_size",),
    )


def _named(layer: str, module: str, output: str, *counts: str) -> Attention:
    maps = (f"{module}.{name}" for name in ("q_proj", "k_proj", "v_proj", output))
    return Attention(layer, module, *maps, counts=counts)


_LLAMA = _named("layers.{}", "self_attn", "o_proj")

ATTENTIONS: dict[str, tuple[Attention, ...]] = {
    "bart": tuple(
        _named(f"{side}.layers.{{}}", module, "out_proj", "num_heads")
        for side, module in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "encoder_attn"))
    ),
    "bert": (_bert(),),
    "camembert": (_bert(),),
    "distilbert": (
        Attention(
            *("transformer.layer.{}", "attention"),
            *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
            head_size="attention_head_size",
            counts=("n_heads",),
        ),
    ),
    "electra": (_bert(),),
    "gemma2": (_LLAMA,),
    "gemma3_text": (_LLAMA,),
    "gpt2": (
        Attention(
            *("h.{}", "attn", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj"),
            counts=("num_heads",),
            widths=("split_size",),
        ),
    ),
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "modernbert": (Attention("layers.{}", "attn", "attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo"),),
    "mpnet": (
        Attention(
            *("encoder.layer.{}", "attention.attn", *(f"attention.attn.{name}" for name in "qkvo")),
            head_size="attention_head_size",
            counts=("num_attention_heads",),
            widths=("all_head_size",),
            bias_place=2,
        ),
    ),
    "opt": (_named("decoder.layers.{}", "self_attn", "out_proj", "num_heads"),),
    "phi": (_named("layers.{}", "self_attn", "dense"),),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "roberta": (_bert(),),
    "smollm3": (_LLAMA,),
    "vit": (_named("layers.{}", "attention", "o_proj", "num_attention_heads"),),
    "xlm-roberta": (_bert(),),
}
# Why not: known models whose heads are more than rows of their maps.
_REASONS = {
    "deberta": "positions have maps of their own in every head",
    "deberta-v2": "positions have maps of their own in every head",
    "gpt_neox": "the rows of query, key and value lie in turns, head by head",
    "olmo2": "a norm goes over all heads at once",
    "t5": "the first layer makes a bias for the heads of all layers",
    "switch_transformers": "the first layer makes a bias for the heads of all layers",
}


def attentions_of(model_type: str) -> tuple[Attention, ...]:
    """Returns the rows of a model type. Raises `InputError`, with the reason, where heads cannot be removed.

    >>> [row.output for row in attentions_of("gpt2")]
    ['attn.c_proj']
    """
    if model_type not in ATTENTIONS:
        reason = f": {_REASONS[model_type]}" if model_type in _REASONS else ""
        raise InputError(f"`model` must be one of {', '.join(ATTENTIONS)} to lose heads, got {model_type}{reason}")
    return ATTENTIONS[model_type]
