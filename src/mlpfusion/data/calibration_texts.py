"""The unlabelled texts that a calibrated method sees: drawn from a file by a seed, with their record."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.lengths import longest_text, text_length
from mlpfusion.checkpoint.tokenizer import load_tokenizer, token_batches, tokenized
from mlpfusion.data.files.rows import short_name
from mlpfusion.data.files.text import read_texts
from mlpfusion.errors import InputError, shown
from mlpfusion.storage.listing import file_sha256

MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class CalibrationTexts:
    """The texts of `file`, of which `num_samples` are drawn."""

    file: str
    column: str | None
    num_samples: int
    texts: tuple[str, ...]

    @classmethod
    def read(cls, file: str, column: str | None, num_samples: int) -> "CalibrationTexts":
        """Reads `file` as `read_texts` does. Raises `InputError` as it does, and for a number below 1."""
        check_samples(num_samples)
        return cls(file, column, num_samples, tuple(read_texts(file, column=column, field="calibration")))

    def draw(self, folder: Path, seed: int, config: PreTrainedConfig | None = None) -> list[str]:
        """`num_samples` texts, or all if there are fewer, by `order_by_length` on characters; none without a token.

        The tokens are those of the tokenizer in `folder`. Raises `InputError` if there is none, or no text has a token.
        """
        tokenizer = load_tokenizer(folder, config)
        order = order_by_length([len(text) for text in self.texts], seed)
        length = text_length(None, longest_text(tokenizer, config))
        texts = (self.texts[index] for index in order)
        kept = (text for text in texts if tokenized([(text,)], tokenizer, config, max_length=length)[0]["input_ids"])
        drawn = list(islice(kept, self.num_samples))
        if not drawn:
            raise InputError(f"`calibration` must hold a text with at least one token, got none in {self.file}")
        return drawn

    def batches(self, folder: Path, config: PreTrainedConfig, seed: int) -> list[Batch]:
        """Batches of token ids of the texts that `draw` gives, for a model of this config. Raises as `draw` does."""
        return with_decoder_inputs(token_batches(folder, self.draw(folder, seed, config), config), config)

    def record(self) -> dict[str, Any]:
        """Where the texts are from: SHA-256 of the file (None for a Hub data set) and of all texts, one a line."""
        path = Path(self.file)
        return {
            "file": short_name(self.file),
            "column": self.column,
            "file_sha256": file_sha256(path) if path.is_file() else None,
            "texts_sha256": hashlib.sha256("\n".join(self.texts).encode(errors="surrogatepass")).hexdigest(),
        }


def check_samples(number: int) -> None:
    """Raises `InputError` for a number of samples to calibrate on that is out of range."""
    if not 1 <= number <= MAX_SAMPLES:
        allowed = "at least 1" if number < 1 else f"at most {MAX_SAMPLES:,}"
        raise InputError(f"`calibration_samples` must be {allowed}, got {shown(number)}")


def order_by_length(lengths: Sequence[int], seed: int) -> list[int]:
    """A random order, the longer the likelier to come early: drawn without replacement, with the length for weight.

    About every token is as likely as every other then; many texts of a few words would say little about the others.
    """
    drawn_at = torch.rand(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-drawn_at.log() / torch.tensor(lengths, dtype=torch.float64)).argsort(stable=True).tolist()
