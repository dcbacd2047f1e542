"""Texts that a model writes for the sources of a task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mlpfusion.batch import Batch, to_device
from mlpfusion.data.generation.encode import Prompts
from mlpfusion.options.decoding import Decoding
from mlpfusion.sites.recording import eval_mode


@dataclass(frozen=True)
class Written:
    """What the model wrote for the entry `number`; `ended`: by an end token, not at the limit."""

    number: int
    text: str
    ended: bool


@contextmanager
def _generating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """`model` with these settings alone: `generate` takes what they leave open from the model's own."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def _inputs(prompts: Prompts, numbers: Sequence[int]) -> Batch:
    """Sources of one length; a written token gets the segment of the last one of its source, by `generate`."""
    sources = torch.tensor([list(prompts.ids[number]) for number in numbers])
    inputs = {"input_ids": sources, "attention_mask": torch.ones_like(sources)}
    if prompts.segments is not None:
        inputs["token_type_ids"] = torch.tensor([list(prompts.segments[number]) for number in numbers])
    return inputs


@dataclass(frozen=True)
class Decoder:
    """Writes texts by greedy or beam search, in eval mode, with a cache of keys and values.

    Sources of the same length are decoded together, so nothing is padded: who shares a batch changes no text, but for
    the rounding of sums. A text ends before the first of `stops`.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    decoding: Decoding

    def write(
        self, model: PreTrainedModel, prompts: Prompts, done: frozenset[int] = frozenset()
    ) -> Iterator[list[Written]]:
        """Yields batches of texts, the shortest sources first, without the entries in `done`."""
        order = sorted(range(len(prompts.ids)), key=lambda number: (len(prompts.ids[number]), number))
        for _, same in groupby(order, key=lambda number: len(prompts.ids[number])):
            while batch := list(islice(same, self.decoding.decode_batch)):
                missing = [number for number in batch if number not in done]
                if missing:
                    # the whole batch, as without the interruption: its sums are rounded the same
                    written = self._batch(model, batch, _inputs(prompts, batch))
                    yield [one for one in written if one.number in missing]

    @torch.no_grad()
    def _batch(self, model: Any, numbers: Sequence[int], inputs: Batch) -> list[Written]:
        with eval_mode(model), _generating(model, self._config(model)):
            found = model.generate(**to_device(inputs, model.device))
        length = inputs["input_ids"].shape[1]
        start = 1 if model.config.is_encoder_decoder else length  # after the start token, or the source
        return [self._written(number, row[start:].tolist()) for number, row in zip(numbers, found, strict=True)]

    def _config(self, model: Any) -> GenerationConfig:
        """Nothing of the model's own settings but its special tokens: a chat model's draw at random."""
        own = model.generation_config
        return GenerationConfig(
            do_sample=False,
            num_beams=self.decoding.num_beams,
            length_penalty=self.decoding.length_penalty,
            max_new_tokens=self.decoding.max_new_tokens,
            use_cache=True,
            eos_token_id=list(self.stops),
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
        )

    def _written(self, number: int, ids: list[int]) -> Written:
        end = next((place for place, token in enumerate(ids) if token in self.stops), None)
        text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
        return Written(number, text.strip(), end is not None)
