"""Tokenizer files and texts of any form end in tokens or in a typed error; no text is longer than a model takes."""

import json
import warnings

import pytest
from pico import pico_config, pico_model
from tiny_task import examples, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoConfig, PreTrainedTokenizerFast

from mlpfusion.checkpoint.lengths import longest_text, text_length
from mlpfusion.checkpoint.tokenizer import load_tokenizer, token_batches, tokenized
from mlpfusion.data.encode import encode_texts
from mlpfusion.data.labelled.glue import LabelledTask
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task
from mlpfusion.data.unlabelled.calibration_texts import CalibrationTexts
from mlpfusion.data.unlabelled.random_tokens import random_texts
from mlpfusion.errors import InputError

DEEP = "[" * 100_000 + "]" * 100_000
FILES = [
    *[("tokenizer.json", text) for text in ("[]", "{}", "{", DEEP, '{"added_tokens": []}')],
    *[("tokenizer_config.json", text) for text in ("[]", "null", f'{{"a": {DEEP}}}', '{"pad_token": 5}')],
    *[("tokenizer_config.json", f'{{"pad_token": {text}}}') for text in ("[]", "{}", "true", '{"content": 5}')],
    *[("special_tokens_map.json", "[]"), ("added_tokens.json", "[]"), ("added_tokens.json", '{"a": "b"}')],
]


@pytest.mark.parametrize(("file", "text"), FILES, ids=[f"{file}-{text[:20]}" for file, text in FILES])
def test_broken_tokenizer_files_are_refused(file, text, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match="`model` must come with a tokenizer|must have a padding or an end token"):
        load_tokenizer(tmp_path)


def test_a_pattern_that_never_ends_is_refused(tmp_path, capfd):
    tiny_tokenizer().save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="the tokenizer must take every text, it failed: .*retry-limit"):
        tokenized([("a" * 40 + "b",)], load_tokenizer(tmp_path), max_length=16)
    capfd.readouterr()  # what the library says of its panic


@pytest.mark.parametrize("limit", ["x", -1, None, [], 0.5, True, 10**400])
def test_a_limit_that_is_none_limits_nothing(limit, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": limit}))
    assert longest_text(load_tokenizer(tmp_path)) is None


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(InputError, match=r"a text must be Unicode, got half of a surrogate pair in 'w1 \\ud800'"):
        tokenized([("w1",), ("w1 \ud800",)], tiny_tokenizer(), max_length=16)


def test_the_longest_text_is_the_least_of_what_tokenizer_and_config_say():
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    limits = {"bert": 64, "gpt2": 64, "llama": 64, "roberta": 63, "xlm-roberta": 63, "bart": 64}
    assert {name: longest_text(tokenizer, pico_config(name)) for name in limits} == limits
    assert longest_text(tokenizer, AutoConfig.for_model("roberta", pad_token_id=1, max_position_embeddings=514)) == 512
    assert longest_text(tokenizer, AutoConfig.for_model("mpnet", max_position_embeddings=514)) == 512
    assert longest_text(tokenizer, AutoConfig.for_model("t5", n_positions=512)) is None
    assert longest_text(tokenizer, AutoConfig.for_model("xlnet")) is None
    tokenizer.model_max_length = 20
    assert longest_text(tokenizer, pico_config("bert")) == 20


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "bart", "opt"])
def test_texts_of_the_longest_length_run(name):
    tokenizer, model = tiny_tokenizer(), pico_model(name)
    tokenizer.model_max_length = 10**30
    with pytest.warns(UserWarning, match=r"texts longer than 6\d tokens are cut"):
        (item,) = encode_texts([("w1 " * 200,)], tokenizer, model.config).items
    assert len(item["input_ids"]) == longest_text(tokenizer, model.config)
    batch = tokenizer.pad([item], return_tensors="pt")
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_a_default_is_clamped_and_told_only_where_it_cuts():
    config, tokenizer = pico_config("bert"), tiny_tokenizer()
    assert text_length(None, None) == 128
    assert text_length(None, 64) == 64
    assert text_length(None, 512) == 128
    assert text_length(512, 512) == 512
    task = LabelledTask(name="half", text_columns=("sentence",), label_names=("0", "1"), metrics=("accuracy",))
    data = encode_task(TaskData(task, examples(8, 0), {"validation": examples(4, 1)}, ""), tokenizer, config)
    assert data.max_length == 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_texts([("w1 " * 62,)], tokenizer, config)  # 64 tokens: as many as there are places
        encode_texts([("w1 " * 200,)], tokenizer, config, max_length=64)  # asked for
    with pytest.warns(UserWarning, match="texts longer than 64 tokens are cut: the model takes no longer ones"):
        encode_texts([("w1 " * 63,)], tokenizer, config)


@pytest.mark.parametrize(("asked", "limit"), [(-1, None), (0, None), (7, 64), (65, 64), (129, 128)])
def test_a_length_out_of_range_is_refused_with_the_range(asked, limit):
    allowed = "at least 8" if limit is None else f"between 8 and {limit}, what the model takes"
    with pytest.raises(InputError, match=f"`max_length` must be {allowed}, got {asked}"):
        text_length(asked, limit)


def test_a_tokenizer_that_refuses_a_letter_is_refused():
    words = Tokenizer(models.WordLevel({f"word{number}": number for number in range(30)}, unk_token="none"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word0")
    with pytest.raises(InputError, match="the tokenizer must take every text, it failed: .*UNK"):
        random_texts(tokenizer, pico_config("bert"), 3, seed=0)


def test_texts_to_measure_and_to_calibrate_on_are_cut_to_the_positions(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(tmp_path)
    config = pico_config("roberta")
    texts = ("w1 " * 300, "w2")
    with pytest.warns(UserWarning, match="texts longer than 63 tokens"):
        (batch,) = token_batches(tmp_path, texts, config)
    assert batch["input_ids"].shape == (2, 63)
    with pytest.warns(UserWarning, match="texts longer than 63 tokens"):
        (batch,) = CalibrationTexts("", None, 2, texts).batches(tmp_path, pico_model("roberta"), 0)
    assert batch["input_ids"].shape == (2, 63)
    config.max_position_embeddings = 21
    assert max(batch["input_ids"].shape[1] for batch in random_texts(tokenizer, config, 50, seed=0)) == 20
