"""Lengths of texts in tokens: the limit of a model, and the default."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.read import empty_model
from mlpfusion.errors import InputError

MAX_LENGTH = (
    128  # default cut of every command: covers almost all sentence pairs of GLUE; the step of 128 is the paper's
)
SHORTEST = 8  # a sentence pair has three special tokens; below this nearly nothing of the text is left
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_encoder_position_embeddings",
    "max_decoder_position_embeddings",
)


def longest_text(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> int | None:
    """Limit of a text in tokens, special ones included; None without any limit.

    It is the smaller of the tokenizer's limit and the number of positions in `config`. Models like
    RoBERTa count positions from one above the padding id, so their texts are shorter by as many.
    With relative positions (T5) only the tokenizer limits.
    """
    limits = [tokenizer.model_max_length, *(() if config is None else _positions(config))]
    # A tokenizer without a limit states 1e30.
    whole = [int(limit) for limit in limits if type(limit) in (int, float) and 1 <= limit < 1e9]
    return min(whole, default=None)


def text_length(asked: int | None, limit: int | None, field: str = "max_length") -> int:
    """Picks the cut of texts: `asked`, else the smaller of `MAX_LENGTH` and `limit`.

    Raises `InputError`, with the name `field`, if `asked` is below `SHORTEST` or above `limit`.

    >>> text_length(None, 512), text_length(None, 77), text_length(256, 512)
    (128, 77, 256)
    """
    if asked is None:
        return MAX_LENGTH if limit is None else min(MAX_LENGTH, limit)
    lowest = SHORTEST if limit is None else min(SHORTEST, limit)
    if asked < lowest or (limit is not None and asked > limit):
        allowed = f"at least {lowest}" if limit is None else f"between {lowest} and {limit}, what the model takes"
        raise InputError(f"`{field}` must be {allowed}, got {asked}")
    return asked


def first_position(config: PreTrainedConfig) -> int:
    """Position of the first token: 0, or padding id + 1 (RoBERTa).

    >>> from transformers import RobertaConfig
    >>> first_position(RobertaConfig(num_hidden_layers=1, pad_token_id=1))
    2
    """
    for name, module in empty_model(config).named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _positions(config: PreTrainedConfig) -> list[int]:
    text = config.get_text_config()
    names = [
        name for name in _POSITIONS if name != "n_positions" or not hasattr(text, "relative_attention_num_buckets")
    ]
    stated = [getattr(text, name, None) for name in names]
    limits = [limit for limit in stated if isinstance(limit, int) and limit > 0]
    if not limits:
        return []
    first = first_position(config)
    return [limit - first for limit in limits]
