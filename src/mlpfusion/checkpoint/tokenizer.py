"""The tokenizer of a checkpoint, token ids and padded batches."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from torch import Tensor
from transformers import AddedToken, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.checkpoint.lengths import MAX_LENGTH, longest_text, text_length
from mlpfusion.errors import InputError, one_line

BATCH_SIZE = 32  # texts per forward pass without labels (calibration, measuring, teacher); not tuned
_FAILED = "the tokenizer must take every text, it failed"
_LIBRARY_ERRORS = (
    OSError,
    ImportError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    OverflowError,
)


@dataclass(frozen=True)
class _Typed(AbstractContextManager[None]):
    """Turns errors of the tokenizers library into an `InputError` with `message`.

    The library is written in Rust. Refused input is a plain `Exception`; a bug (say, a pattern
    without end) is a `PanicException`, neither an `Exception` nor importable, so its name is
    compared.
    """

    message: str

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or error is None or isinstance(error, InputError):
            return
        if kind is Exception or kind.__name__ == "PanicException" or isinstance(error, _LIBRARY_ERRORS):
            raise InputError(f"{self.message}: {one_line(error) or kind.__name__}") from error


def load_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in `folder`, padding on the right, with a padding token.

    A missing padding token is replaced by the end token; in encoder-decoders (their classifiers
    read the state at the end token) by the padding token of `config`, if the tokenizer has it.
    Raises `InputError` for a missing or broken tokenizer, one with neither token, and a padding
    token beyond the vocabulary of `config`.
    """
    tokenizer = read_tokenizer(folder)
    if not tokenizer.pad_token:
        token = _padding_token(tokenizer, config)
        if not token:
            raise InputError(f"the tokenizer in {folder} must have a padding or an end token, it has neither")
        tokenizer.pad_token = token
    tokenizer.padding_side = "right"  # positions must not depend on the longest text of the batch
    _check_ids([cast(int, tokenizer.pad_token_id)], tokenizer, config)
    return tokenizer


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in `folder` unchanged. Raises `InputError` if missing or broken."""
    with _Typed(f"`model` must come with a tokenizer, {folder} has none that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers made one from the config alone
            raise InputError(f"`model` must come with a tokenizer, {folder} has none with a vocabulary")
    return tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Adds special tokens that `tokenizer` does not know, in place, in their order."""
    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [AddedToken(token, special=True) for token in tokens if token not in known], special_tokens=True
    )


def tokenized(
    texts: Sequence[tuple[str, ...]],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    max_length: int,
) -> list[dict[str, Any]]:
    """Tokenizes texts or pairs: one dict per text, `input_ids`, `attention_mask`, ..

    Texts are cut at `max_length` tokens, the longer one of a pair first. Raises `InputError` for
    broken Unicode, a text on which the tokenizer fails, and a token beyond the vocabulary of
    `config`.
    """
    for text in texts:
        _check_unicode(text)
    columns = [list(column) for column in zip(*texts, strict=True)]
    second = columns[1] if len(columns) == 2 else None
    with _Typed(_FAILED):
        encoded = tokenizer(columns[0], text_pair=second, truncation=True, max_length=max_length, padding=False)
    _check_ids([max(ids) for ids in encoded["input_ids"] if ids], tokenizer, config)
    names = list(encoded)
    return [dict(zip(names, row, strict=True)) for row in zip(*(encoded[name] for name in names), strict=True)]


def token_stream(text: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None = None) -> list[int]:
    """Token ids of the whole `text`, however long, without special tokens around it.

    Raises `InputError` as `tokenized` does.
    """
    _check_unicode((text,))
    with _Typed(_FAILED):
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    _check_ids(ids, tokenizer, config)
    return ids


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Sequence[int], Sequence[int]]:
    """Ids of the special tokens that the tokenizer puts before and after a text.

    Raises `InputError` for a tokenizer that changes the text when it adds them, or fails.
    """
    text = "a"
    with _Typed(_FAILED):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        framed = tokenizer(text)["input_ids"]
    for start in range(len(framed) - len(plain) + 1):
        if framed[start : start + len(plain)] == plain:
            return framed[:start], framed[start + len(plain) :]
    raise InputError("the tokenizer must put its special tokens around a text, got one that changes it")


def token_batches(
    folder: Path, texts: Sequence[str], config: PreTrainedConfig | None = None, *, max_length: int | None = None
) -> list[Mapping[str, Tensor]]:
    """Tokenizes texts with the tokenizer in `folder`; padded batches, sorted by length.

    The default `max_length` is `MAX_LENGTH`, or the limit of the model if smaller. Raises
    `InputError` for a missing tokenizer, a `max_length` above the limit, and a text that the
    tokenizer refuses.
    """
    tokenizer = load_tokenizer(folder, config)
    length = text_length(max_length, longest_text(tokenizer, config))
    items = tokenized([(text,) for text in texts], tokenizer, config, max_length=length)
    if max_length is None:
        warn_if_cut([((text,), item) for text, item in zip(texts, items, strict=True)], tokenizer, length)
    items.sort(key=lambda item: len(item["input_ids"]))
    return padded(items, tokenizer)


def padded(items: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Mapping[str, Tensor]]:
    """Batches of `BATCH_SIZE` items in order, each padded to its longest item."""
    starts = range(0, len(items), BATCH_SIZE)
    return [dict(tokenizer.pad(list(items[start : start + BATCH_SIZE]), return_tensors="pt")) for start in starts]


def warn_if_cut(
    encoded: Sequence[tuple[tuple[str, ...], dict[str, Any]]], tokenizer: PreTrainedTokenizerBase, length: int
) -> None:
    """Warns of texts cut by the limit of the model (not by the default)."""
    if length >= MAX_LENGTH:
        return
    full = [text for text, item in encoded if len(item["input_ids"]) == length]
    if any(
        len(tokenizer(text[0], text_pair=text[1] if len(text) == 2 else None)["input_ids"]) > length for text in full
    ):
        warnings.warn(f"texts longer than {length} tokens are cut: the model takes no longer ones", stacklevel=3)


def _padding_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None) -> str | None:
    stated = None if config is None or not config.is_encoder_decoder else getattr(config, "pad_token_id", None)
    if isinstance(stated, int) and 0 <= stated < len(tokenizer) and stated != tokenizer.eos_token_id:
        return str(tokenizer.convert_ids_to_tokens(stated))
    return None if tokenizer.eos_token is None else str(tokenizer.eos_token)


def _check_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig | None) -> None:
    size = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    if size is None or max(ids, default=0) < size:
        return
    token = tokenizer.convert_ids_to_tokens(max(ids))
    raise InputError(
        f"the tokenizer must have ids below {size}, the vocabulary of the model, got {max(ids)} for {token!r}; "
        "resize the model's embeddings, or name another token in tokenizer_config.json"
    )


def _check_unicode(texts: Sequence[str]) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = ascii(text[max(0, error.start - 20) : error.end + 20])
            raise InputError(f"a text must be Unicode, got half of a surrogate pair in {shown}") from error
