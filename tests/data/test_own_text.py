"""Text that a language model writes to be calibrated on."""

import pytest
import torch
from pico import VOCAB, others_slow, pico_model
from tiny_task import tiny_tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

from mlpfusion.data.unlabelled.data_free import DataFree, data_free_batches, is_data_free
from mlpfusion.data.unlabelled.own_text import own_text
from mlpfusion.data.unlabelled.random_tokens import ordinary_tokens
from mlpfusion.errors import InputError
from mlpfusion.progress import shown_progress

CAUSAL = ("gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "opt", "phi", "qwen2", "smollm3")


def language_model(name="llama", dtype=torch.float32):
    return pico_model(name, AutoModelForCausalLM, dtype=dtype)


def written(model, seed=0, number=70):
    return own_text(model, tiny_tokenizer(), number, 24, seed)


@pytest.mark.parametrize("name", others_slow(CAUSAL, quick=("llama", "gpt2")))
def test_texts_have_the_length_begin_as_texts_do_and_hold_no_special_token(name):
    ids, tokenizer = written(language_model(name)), tiny_tokenizer()
    assert ids.shape == (70, 24)
    frame = tokenizer("w1")["input_ids"][:1]
    assert (ids[:, 0] == frame[0]).all()
    assert not set(tokenizer.all_special_ids) & set(ids[:, 1:].flatten().tolist())
    assert int(ids.max()) < VOCAB
    assert len({tuple(row) for row in ids.tolist()}) == 70


def test_tokens_are_drawn_by_the_probabilities_of_the_model():
    model, tokenizer = language_model(), tiny_tokenizer()
    ids = own_text(model, tokenizer, 4000, 4, 0)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, 1:-1]
    ordinary = ordinary_tokens(tokenizer, model.config)
    allowed = torch.full((VOCAB,), -torch.inf).index_fill(0, ordinary, 0.0)
    for place in (0, 1):
        expected = (logits[:, place] + allowed).softmax(-1).sum(0)
        found = torch.bincount(ids[:, 2 + place], minlength=VOCAB).float()
        assert float((found - expected).abs().sum() / expected.sum()) < 0.12  # of 4,000 draws from 60 tokens: 0.1


def test_the_seed_decides_and_the_generators_and_the_model_stay_as_they_were():
    model = language_model()
    model.generation_config = own = GenerationConfig(do_sample=False, repetition_penalty=5.0, max_length=3)
    state = torch.get_rng_state()
    assert torch.equal(written(model), written(model))
    assert torch.equal(written(model), written(language_model()))
    assert not torch.equal(written(model), written(model, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is own


def test_a_model_in_half_precision_writes_what_it_would_in_fp32_on_a_cpu():
    half = language_model(dtype=torch.bfloat16)
    assert torch.equal(written(half, number=3), written(language_model(dtype=torch.bfloat16).float(), number=3))
    assert half.dtype == torch.bfloat16


def test_language_models_write_and_others_see_random_tokens(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    source = DataFree(40, window=16)
    prepared = source.prepare(tmp_path, language_model(), 0)
    batches = prepared.batches(language_model(), shown_progress(None))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(32, 16), (8, 16)]
    assert is_data_free(prepared.origin)
    with pytest.raises(InputError, match="`calibration_window` must be left out for a BertModel, which sees texts"):
        source.prepare(tmp_path, pico_model("bert"), 0)
    of_encoder = DataFree(40).prepare(tmp_path, pico_model("bert"), 0)
    assert "attention_mask" in of_encoder.batches(pico_model("bert"), shown_progress(None))[0]
    assert is_data_free(of_encoder.origin)
    in_python = data_free_batches(language_model(), tiny_tokenizer(), 40, window=16)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in zip(batches, in_python, strict=True))
    for window in (7, 65):
        with pytest.raises(InputError, match=f"`calibration_window` must be between 8 and 64, .*, got {window}"):
            DataFree(40, window).prepare(tmp_path, language_model(), 0)


def test_without_a_tokenizer_or_samples_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match="`model` must come with a tokenizer"):
        DataFree(3).prepare(tmp_path, language_model(), 0)
    with pytest.raises(InputError, match="`calibration_samples` must be at least 1, got 0"):
        DataFree(0)
