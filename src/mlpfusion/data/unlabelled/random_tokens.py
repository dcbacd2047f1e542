"""Calibration without data: sequences of random tokens."""

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.lengths import longest_text
from mlpfusion.checkpoint.tokenizer import padded, special_frame
from mlpfusion.errors import InputError

_LENGTHS = (4, 40)  # tokens per sequence without special ones: from 4 to 39, sentences like GLUE's; not tuned
_COMMON = 300  # ranks before the frequencies begin to fall: punctuation, single letters and words like "the"; not tuned


def random_texts(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, num_samples: int, seed: int
) -> list[Batch]:
    """Padded batches of random texts, special tokens included, for a model of `config`.

    Rank r of the vocabulary has probability ~ 1 / (r + 300): vocabularies are roughly sorted by frequency, and uniform
    draws would be almost all rare pieces of words. Lengths are uniform between 4 and 39. Raises `InputError` if the
    tokenizer knows special tokens only.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = ordinary_tokens(tokenizer, config)
    before, after = special_frame(tokenizer)
    sequences = []
    longest = _longest(tokenizer, config) - len(before) - len(after)
    for drawn_length in torch.randint(*_LENGTHS, (num_samples,), generator=generator).tolist():
        length = min(drawn_length, longest)
        sequences.append([*before, *common_tokens(ranks, length, generator).tolist(), *after])
    sequences.sort(key=len)
    return with_decoder_inputs(padded([{"input_ids": ids} for ids in sequences], tokenizer), config)


def _longest(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    limit = longest_text(tokenizer, config)
    return sum(_LENGTHS) * 2 if limit is None else limit  # without a limit: any number above the longest draw


def common_tokens(
    ordinary: Int[Tensor, " ordinary"], number: int, generator: torch.Generator
) -> Int[Tensor, " number"]:
    """Draws from the `ordinary` tokens, the early ones more often: see `random_texts`."""
    drawn = torch.rand(number, generator=generator)
    places = _COMMON * ((len(ordinary) / _COMMON + 1) ** drawn - 1)
    return ordinary[places.long().clamp_max(len(ordinary) - 1)]


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Int[Tensor, " ordinary"]:
    """Lists the tokens in the model's vocabulary, in order, without special ones.

    Raises `InputError` if there is none.
    """
    size = min(len(tokenizer), getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer))
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ordinary = [index for index in range(size) if index not in special]
    if not ordinary:
        raise InputError("the tokenizer must have tokens that are not special, got none")
    return torch.tensor(ordinary)
