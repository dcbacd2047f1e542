"""Unlabelled texts for calibration, drawn from a file by a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.lengths import longest_text, text_length
from mlpfusion.checkpoint.tokenizer import BATCH_SIZE, load_tokenizer, token_batches, tokenized
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import read_texts, texts_sha256
from mlpfusion.data.unlabelled.windows import drawn_windows, is_causal, window_length
from mlpfusion.errors import InputError, shown
from mlpfusion.progress import Progress
from mlpfusion.storage.listing import file_sha256

MAX_SAMPLES = 1_000_000  # far above any use, against typing errors
WINDOW = 128  # tokens; the default for a language model. Longer ones were not tried


@dataclass(frozen=True)
class PreparedCalibration:
    """What a calibration needs, checked before the weights of the model are read.

    `batches(model, progress)` makes the batches with the weights; `origin` says in a record where they are from, as a
    `file` at least.
    """

    batches: Callable[[PreTrainedModel, Progress], list[Batch]]
    origin: dict[str, Any]


class CalibrationSource(Protocol):
    """Where a calibration is from: texts (`CalibrationTexts`), or none (`DataFree`)."""

    @property
    def num_samples(self) -> int: ...

    def prepare(self, folder: Path, model: PreTrainedModel, seed: int) -> PreparedCalibration:
        """Does all that can be done with the tokenizer in `folder` and without the weights of `model`."""
        ...


@dataclass(frozen=True)
class CalibrationTexts:
    """All texts of `file`; a run draws `num_samples` of them.

    A language model gets windows of `window` tokens of them instead: see `drawn_windows`.
    """

    file: str
    column: str | None
    num_samples: int
    texts: tuple[str, ...]
    window: int | None = None

    @classmethod
    def read(cls, file: str, column: str | None, num_samples: int, window: int | None = None) -> "CalibrationTexts":
        """Reads `file`, a text file or the column of a table.

        Raises `InputError` for a file or column without texts, and for `num_samples` below 1.
        """
        check_samples(num_samples)
        return cls(file, column, num_samples, tuple(read_texts(file, column=column, field="calibration")), window)

    def draw(self, folder: Path, seed: int, config: PreTrainedConfig | None = None) -> list[str]:
        """Draws `num_samples` texts, long ones more often.

        A file with fewer texts gives all of them. Texts without a token (by the tokenizer in
        `folder`) are skipped. Raises `InputError` if `folder` has no tokenizer, or no text has a
        token.
        """
        tokenizer = load_tokenizer(folder, config)
        order = order_by_length([len(text) for text in self.texts], seed)
        length = text_length(None, longest_text(tokenizer, config))
        texts = (self.texts[index] for index in order)
        with_tokens = (
            text for text in texts if tokenized([(text,)], tokenizer, config, max_length=length)[0]["input_ids"]
        )
        drawn = list(islice(with_tokens, self.num_samples))
        if not drawn:
            raise InputError(f"`calibration` must hold a text with at least one token, got none in {self.file}")
        return drawn

    def batches(self, folder: Path, model: PreTrainedModel, seed: int) -> list[Batch]:
        """Tokenizes the drawn texts to padded batches, for a language model the drawn windows.

        Of `model` only class and config count. Raises `InputError` as `draw` and `drawn_windows` do.
        """
        tokenizer, config = load_tokenizer(folder, model.config), model.config
        length = calibration_window(self.window, tokenizer, model)
        if length is None:
            return with_decoder_inputs(token_batches(folder, self.draw(folder, seed, config), config), config)
        windows = drawn_windows(self.texts, tokenizer, config, window=length, num_windows=self.num_samples, seed=seed)
        return window_batches(windows)

    def prepare(self, folder: Path, model: PreTrainedModel, seed: int) -> PreparedCalibration:
        """Makes the batches, which need no weights. Raises `InputError` as `batches` does."""
        made = self.batches(folder, model, seed)
        return PreparedCalibration(lambda _model, _progress: made, self.record())

    def record(self) -> dict[str, Any]:
        """Origin of the texts: name, column and SHA-256.

        `texts_sha256` is the hash of all texts, one per line. `file_sha256` is None for a data set
        of the Hub.
        """
        path = Path(self.file)
        return {
            "file": short_name(self.file),
            "column": self.column,
            "file_sha256": file_sha256(path) if path.is_file() else None,
            "texts_sha256": texts_sha256(self.texts),
        }


def calibration_window(asked: int | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int | None:
    """Picks the tokens of a window of calibration: `asked`, else `WINDOW`; None if `model` is no language model.

    Raises `InputError` for a window that the model cannot take, and one for a model that sees texts.
    """
    if is_causal(model):
        return window_length(asked, tokenizer, model.config, usual=WINDOW, field="calibration_window")
    if asked is not None:
        raise InputError(f"`calibration_window` must be left out for a {type(model).__name__}, which sees texts")
    return None


def window_batches(windows: Int[Tensor, "windows tokens"]) -> list[Batch]:
    """Batches of `BATCH_SIZE` windows."""
    return [{"input_ids": part} for part in windows.split(BATCH_SIZE)]


def check_samples(number: int) -> None:
    """Raises `InputError` unless 1 <= number <= `MAX_SAMPLES`."""
    if not 1 <= number <= MAX_SAMPLES:
        allowed = "at least 1" if number < 1 else f"at most {MAX_SAMPLES:,}"
        raise InputError(f"`calibration_samples` must be {allowed}, got {shown(number)}")


def order_by_length(lengths: Sequence[int], seed: int) -> list[int]:
    """Random order of `lengths`, weighted draws without replacement, weight = length.

    So every token is about as likely to be seen as every other; uniform draws would be mostly short
    texts.

    >>> order_by_length([1, 1000, 1], seed=0)[0]
    1
    """
    uniform = torch.rand(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Efraimidis and Spirakis 2006: the smallest of the exponential variates with rate `length` comes first.
    return (-uniform.log() / torch.tensor(lengths, dtype=torch.float64)).argsort(stable=True).tolist()
