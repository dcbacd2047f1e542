"""Sequences of random tokens in the form of a text."""

import torch
from pico import pico_config
from tiny_task import tiny_tokenizer

from mlpfusion.data.unlabelled.random_tokens import random_texts


def test_sequences_have_the_form_of_a_text():
    tokenizer, config = tiny_tokenizer(), pico_config("bert")
    special = set(tokenizer.all_special_ids)
    batches = random_texts(tokenizer, config, 70, seed=3)
    assert [len(batch["input_ids"]) for batch in batches] == [32, 32, 6]
    frame = tokenizer("w1")["input_ids"]
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            kept = ids[mask.bool()].tolist()
            assert (kept[0], kept[-1]) == (frame[0], frame[-1])
            assert 4 <= len(kept) - 2 < 40
            assert not special & set(kept[1:-1])
            assert max(kept) < min(len(tokenizer), config.vocab_size)


def test_the_seed_decides():
    config = pico_config("bert")
    first, second, other = (random_texts(tiny_tokenizer(), config, 9, seed)[0]["input_ids"] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_early_tokens_are_likelier():
    batches = random_texts(tiny_tokenizer(), pico_config("bert"), 600, seed=0)
    ids = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches])
    ordinary = ids[ids > max(tiny_tokenizer().all_special_ids)]
    counts = torch.bincount(ordinary).float()
    counts = counts[counts > 0]
    assert float(counts[: len(counts) // 2].mean()) > float(counts[len(counts) // 2 :].mean())


def test_a_decoder_reads_them_shifted():
    (batch,) = random_texts(tiny_tokenizer(), pico_config("t5"), 5, seed=0)
    assert torch.equal(batch["decoder_input_ids"][:, 1:], batch["input_ids"][:, :-1])
