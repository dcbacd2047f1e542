"""Calibration without data: sequences of random tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.lengths import longest_text
from mlpfusion.checkpoint.tokenizer import load_tokenizer, padded, special_frame
from mlpfusion.data.calibration_texts import check_samples
from mlpfusion.errors import InputError

_LENGTHS = (4, 40)  # tokens per sequence without special ones: from 4 to 39, sentences like GLUE's; not tuned
_MARK = "random tokens"  # in place of the name of a file
_COMMON = 300  # ranks before the frequencies begin to fall: punctuation, single letters and words like "the"; not tuned


@dataclass(frozen=True)
class RandomTokens:
    """Random sequences; rank r of the vocabulary has probability ~ 1 / (r + 300).

    Vocabularies are roughly sorted by frequency; uniform draws would be almost all rare pieces of
    words. Lengths are uniform between 4 and 39.
    """

    num_samples: int

    def __post_init__(self) -> None:
        check_samples(self.num_samples)

    def batches(self, folder: Path, config: PreTrainedConfig, seed: int) -> list[Batch]:
        """Padded batches of random texts, special tokens included, for a model of `config`.

        Raises `InputError` if `folder` has no tokenizer, or the tokenizer knows special tokens
        only.
        """
        tokenizer = load_tokenizer(folder, config)
        generator = torch.Generator().manual_seed(seed)
        ranks = _ordinary_tokens(tokenizer, config)
        before, after = special_frame(tokenizer)
        sequences = []
        longest = _longest(tokenizer, config) - len(before) - len(after)
        for drawn_length in torch.randint(*_LENGTHS, (self.num_samples,), generator=generator).tolist():
            length = min(drawn_length, longest)
            drawn = torch.rand(length, generator=generator)
            places = _COMMON * ((len(ranks) / _COMMON + 1) ** drawn - 1)
            sequences.append([*before, *ranks[places.long().clamp_max(len(ranks) - 1)].tolist(), *after])
        sequences.sort(key=len)
        return with_decoder_inputs(padded([{"input_ids": ids} for ids in sequences], tokenizer), config)

    def record(self) -> dict[str, Any]:
        """Origin of the texts, for a record."""
        return {"file": _MARK}


def is_random_tokens(calibration: Mapping[str, Any]) -> bool:
    """Returns True if a record of a calibration is that of random tokens, and of no file of that name.

    >>> is_random_tokens({"file": "random tokens", "column": None}), is_random_tokens({"file": "random tokens"})
    (False, True)
    """
    return calibration.get("file") == _MARK and "column" not in calibration  # `CalibrationTexts.record` names one


def _longest(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    limit = longest_text(tokenizer, config)
    return sum(_LENGTHS) * 2 if limit is None else limit  # without a limit: any number above the longest draw


def _ordinary_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> torch.Tensor:
    """Ids of the tokens in the model's vocabulary, in order, without special ones."""
    size = min(len(tokenizer), getattr(config, "vocab_size", None) or len(tokenizer))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [index for index in range(size) if index not in special]
    if not ordinary:
        raise InputError("the tokenizer must have tokens that are not special, got none")
    return torch.tensor(ordinary)
