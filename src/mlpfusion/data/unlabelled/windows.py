"""Texts packed into windows of tokens, for language models."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mlpfusion.checkpoint.lengths import SHORTEST, longest_text
from mlpfusion.checkpoint.tokenizer import special_frame, token_stream
from mlpfusion.errors import InputError, shown

SEPARATOR = "\n\n"  # between two texts, as in the usual perplexity of WikiText
WINDOW = 512  # tokens; the default. Longer contexts lower the perplexity: name it beside the number
_CHARACTERS = 8  # read for a token of a window at first: most texts have 2 to 5
_LONGEST_WORD = 100  # characters; what has no space for longer is a script without spaces


@dataclass(frozen=True)
class Window:
    """Tokens that are read together, of which the last `num_scored` are predicted."""

    input_ids: Int[Tensor, " tokens"]
    num_scored: int


def is_causal(model: PreTrainedModel) -> bool:
    """Whether `model` predicts the next token, by its class."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def window_length(
    asked: int | None,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    usual: int = WINDOW,
    field: str = "window",
) -> int:
    """Picks the tokens of a window: `asked`, else the smaller of `usual` and the limit of the model.

    Raises `InputError`, with the name `field`, if `asked` is below `SHORTEST` or above the limit.
    """
    limit = longest_text(tokenizer, config)
    if asked is None:
        return usual if limit is None else min(usual, limit)
    if asked < SHORTEST or (limit is not None and asked > limit):
        allowed = f"at least {SHORTEST}" if limit is None else f"between {SHORTEST} and {limit}, what the model takes"
        raise InputError(f"`{field}` must be {allowed}, got {shown(asked)}")
    return asked


def token_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    window: int,
    stride: int | None = None,
    max_tokens: int | None = None,
    field: str = "data",
    length_field: str = "window",
) -> list[Window]:
    """Packs `texts`, with an empty line between two, into windows that begin every `stride` tokens.

    Every token is predicted once: where windows overlap, in the first that holds it. Special tokens that the tokenizer
    puts before a text (a BOS) are put before every window and count in its length; without any, the first token of the
    first window has nothing before it and is not predicted, and without overlap that of every window. The last window
    may be shorter. `stride` is by default the tokens of a window, at most so many; only the first `max_tokens` tokens
    of the texts are taken. Raises `InputError` for a bad number, for texts shorter than a window, and for texts that
    the tokenizer refuses; messages call texts and window `field` and `length_field`.
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
        raise InputError(
            f"`{field}` must hold at least the {window} tokens of a `{length_field}`, got {len(ids) + len(start)}"
        )
    windows = []
    for begin in range(0, len(ids) - room + step, step):
        tokens = torch.cat([start, ids[begin : begin + room]])
        seen = room - step if begin else 0  # in the window before, and predicted there
        scored = min(len(tokens) - len(start) - seen, len(tokens) - 1)
        if scored:
            windows.append(Window(tokens, scored))
    return windows


def drawn_windows(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    *,
    window: int,
    num_windows: int,
    seed: int,
) -> Int[Tensor, "num_windows window"]:
    """Draws windows of `texts`, as `token_windows` packs them, from places spread over all of them.

    The characters are divided into `num_windows` equal stretches; a window begins at the first word after a random
    place in each, and goes on into the next texts, after the last into the first. So windows overlap where there is too
    little text. Only what the windows hold is tokenized. Raises `InputError` for texts shorter than a window.
    """
    start = torch.tensor(special_frame(tokenizer)[0], dtype=torch.long)
    ends = list(accumulate(len(text) for text in texts))
    shares = torch.rand(num_windows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    places = ((torch.arange(num_windows) + shares) * (ends[-1] / num_windows)).long().tolist()
    windows, room = [], window - len(start)
    if ends[-1] < _LONGEST_WORD * room:  # else it would take long, and there are tokens enough
        found = len(token_stream(SEPARATOR.join(texts), tokenizer, config))
        if found < room:
            raise _too_short(room, found)
    for place in places:
        number = bisect_right(ends, place)
        ids = _tokens_from(texts, number, place - (ends[number] - len(texts[number])), room, tokenizer, config)
        windows.append(torch.cat([start, torch.tensor(ids)]))
    return torch.stack(windows)


def _tokens_from(
    texts: Sequence[str],
    number: int,
    offset: int,
    room: int,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
) -> list[int]:
    """Reads `room` tokens from the first word after character `offset` of text `number`, going on in the next texts."""
    piece = texts[number][offset:]
    word = re.search(r"\s\S", piece[:_LONGEST_WORD]) if offset else None
    if word is not None:
        piece = piece[word.start() + 1 :]
    elif offset and len(piece) <= _LONGEST_WORD:  # inside the last word
        number = (number + 1) % len(texts)
        piece = texts[number]
    length = _CHARACTERS * room
    for following in (*texts[number + 1 :], *texts[: number + 1]):
        if len(piece) >= length:
            ids = token_stream(piece[:length], tokenizer, config)
            if len(ids) > room:  # the last token may be half a word
                return ids[:room]
            length *= 2
        piece += SEPARATOR + following
    ids = token_stream(piece, tokenizer, config)
    if len(ids) < room:
        raise _too_short(room, len(ids))
    return ids[:room]


def _too_short(room: int, found: int) -> InputError:
    return InputError(f"`calibration` must hold at least {room} tokens, those of a window, got {found}")
