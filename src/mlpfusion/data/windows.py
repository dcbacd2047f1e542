"""Texts packed into windows of tokens, for language models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import SHORTEST, longest_text
from mlpfusion.checkpoint.tokenizer import special_frame, token_stream
from mlpfusion.errors import InputError, shown

SEPARATOR = "\n\n"  # between two texts, as in the usual perplexity of WikiText
WINDOW = 512  # tokens; the default. Longer contexts lower the perplexity: name it beside the number


@dataclass(frozen=True)
class Window:
    """Tokens that are read together, of which the last `num_scored` are predicted."""

    input_ids: Int[Tensor, " tokens"]
    num_scored: int


def window_length(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Picks the tokens of a window: `asked`, else the smaller of `WINDOW` and the limit of the model.

    Raises `InputError` if `asked` is below `SHORTEST` or above the limit.
    """
    limit = longest_text(tokenizer, config)
    if asked is None:
        return WINDOW if limit is None else min(WINDOW, limit)
    if asked < SHORTEST or (limit is not None and asked > limit):
        allowed = f"at least {SHORTEST}" if limit is None else f"between {SHORTEST} and {limit}, what the model takes"
        raise InputError(f"`window` must be {allowed}, got {shown(asked)}")
    return asked


def token_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    window: int,
    stride: int | None = None,
    max_tokens: int | None = None,
) -> list[Window]:
    """Packs `texts`, with an empty line between two, into windows that begin every `stride` tokens.

    Every token is predicted once: where windows overlap, in the first that holds it. Special tokens that the tokenizer
    puts before a text (a BOS) are put before every window and count in its length; without any, the first token of the
    first window has nothing before it and is not predicted, and without overlap that of every window. The last window
    may be shorter. `stride` is by default the tokens of a window, at most so many; only the first `max_tokens` tokens
    of the texts are taken. Raises `InputError` for a bad number, for texts shorter than a window, and for texts that
    the tokenizer refuses.
    """
    start = torch.tensor(special_frame(tokenizer)[0], dtype=torch.long)
    room = window - len(start)
    step = room if stride is None else stride
    if not 1 <= step <= room:
        raise InputError(f"`stride` must be between 1 and {room}, the tokens of a window, got {shown(stride)}")
    if max_tokens is not None and max_tokens < window:
        raise InputError(f"`max_tokens` must be at least {window}, the tokens of a window, got {shown(max_tokens)}")
    ids = torch.tensor(token_stream(SEPARATOR.join(texts), tokenizer, config)[:max_tokens])
    if len(ids) < room:
        raise InputError(f"`data` must hold at least the {window} tokens of a `window`, got {len(ids) + len(start)}")
    windows = []
    for begin in range(0, len(ids) - room + step, step):
        tokens = torch.cat([start, ids[begin : begin + room]])
        seen = room - step if begin else 0  # in the window before, and predicted there
        scored = min(len(tokens) - len(start) - seen, len(tokens) - 1)
        if scored:
            windows.append(Window(tokens, scored))
    return windows
