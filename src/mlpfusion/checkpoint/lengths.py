"""How long a text may be for a model, and how long texts are taken."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.read import empty_model
from mlpfusion.errors import InputError

MAX_LENGTH = 128
SHORTEST = 8
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_encoder_position_embeddings",
    "max_decoder_position_embeddings",
)


def longest_text(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> int | None:
    """Counts the tokens that a text may have at most, special ones included; None where nothing limits them.

    It is the smaller of what the tokenizer says and of the positions that `config` states. Models like RoBERTa count
    positions from one above the padding id, so they take as many fewer. Where the positions are relative (T5) there is
    no limit but the tokenizer's.
    """
    limits = [tokenizer.model_max_length, *(() if config is None else _positions(config))]
    whole = [int(limit) for limit in limits if type(limit) in (int, float) and 1 <= limit < 1e9]
    return min(whole, default=None)


def text_length(asked: int | None, limit: int | None, field: str = "max_length") -> int:
    """Says at how many tokens texts are cut: at `asked`, else at 128 or at `limit` if that is less.

    Raises `InputError`, which names `field`, if `asked` is below 8 or above `limit`.
    """
    if asked is None:
        return MAX_LENGTH if limit is None else min(MAX_LENGTH, limit)
    lowest = SHORTEST if limit is None else min(SHORTEST, limit)
    if asked < lowest or (limit is not None and asked > limit):
        allowed = f"at least {lowest}" if limit is None else f"between {lowest} and {limit}, what the model takes"
        raise InputError(f"`{field}` must be {allowed}, got {asked}")
    return asked


def first_position(config: PreTrainedConfig) -> int:
    """Gives the position of a text's first token: not 0 where positions are counted from above the padding id.

    Raises `InputError` as `empty_model` does.
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
    found = [limit for limit in stated if isinstance(limit, int) and limit > 0]
    if not found:
        return []
    first = first_position(config)
    return [limit - first for limit in found]
