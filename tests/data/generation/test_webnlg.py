import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config
from webnlg_by_hand import TEN

from mlpfusion.checkpoint.tokenizer import add_tokens, load_tokenizer
from mlpfusion.data.generation.encode import EncodedGeneration
from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.data.generation.segments import segment_ids
from mlpfusion.data.generation.task import GENERATION
from mlpfusion.data.generation.webnlg import (
    ADDED_TOKENS,
    SEGMENT_TOKENS,
    Segment,
    read_facts,
    read_webnlg,
    source_segments,
    target_segment,
)
from mlpfusion.data.task import TaskData
from mlpfusion.data.tasks import encode_task
from mlpfusion.errors import InputError

ROW: dict[str, Any] = {
    "category": "City",
    "triples": [["a", "b", "c"]],
    "references": ["A."],
    "comments": ["good"],
    "seen": True,
}


def write_split(folder: Path, *rows: dict[str, Any], split: str = "train") -> Path:
    with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module")
def gpt2_folder(evaluation_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("vocab.json", "merges.txt"):
        packed = evaluation_data / "tokenizers" / "gpt2" / f"{name}.gz"
        (folder / name).write_bytes(gzip.decompress(packed.read_bytes()))
    files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    ByteLevelBPETokenizer.from_file(*files).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder) -> ByteLevelBPETokenizer:
    tokenizer = ByteLevelBPETokenizer.from_file(str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt"))
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    return tokenizer


@pytest.mark.parametrize("expected", TEN, ids=lambda entry: f"{entry.split}-{entry.index}")
def test_text_and_segments_are_those_written_by_hand(expected, evaluation_data):
    folder = evaluation_data / "webnlg"
    entry = read_webnlg(folder, expected.split).entries[expected.index]
    lines = expected.lines.split("\n")
    assert entry.source == "".join(lines)
    assert (entry.references, entry.group) == (expected.references, expected.group)
    facts = read_facts(folder, expected.split)[expected.index]
    kinds = [line[: line.index(">") + 1] for line in lines]
    assert source_segments(facts.triples) == tuple(map(Segment, kinds, lines))


def test_the_ten_have_one_to_seven_triples():
    assert {entry.lines.count("<subject>") for entry in TEN} == {1, 2, 3, 4, 5, 6, 7}


def test_the_text_to_learn_ends_with_its_token():
    assert target_segment("Aarhus is a city.") == Segment("<target_webnlg>", "Aarhus is a city.<eos_webnlg>")


@pytest.mark.parametrize(
    ("split", "entries", "texts", "groups"),
    [("train", 6935, 18025, ()), ("validation", 871, 2258, ()), ("test", 1862, 4928, ("SEEN", "UNSEEN"))],
)
def test_the_counts_are_those_published(split, entries, texts, groups, evaluation_data):
    examples = read_webnlg(evaluation_data / "webnlg", split)
    assert (len(examples), len(examples.pairs()), examples.groups) == (entries, texts, groups)


def test_the_test_split_has_971_seen_entries_and_891_others(evaluation_data):
    groups = [entry.group for entry in read_webnlg(evaluation_data / "webnlg", "test").entries]
    assert groups == ["SEEN"] * 971 + ["UNSEEN"] * 891


def test_special_tokens_have_the_ids_of_the_papers_code(gpt2):
    assert [gpt2.token_to_id(token) for token in ADDED_TOKENS] == list(range(50257, 50273))
    names = ("<pad>", "<bos_webnlg>", "<eos_webnlg>", "<subject>", "<property>", "<object>", "<target_webnlg>")
    assert [gpt2.token_to_id(name) for name in names] == [50257, 50267, 50268, 50269, 50270, 50271, 50272]


def test_the_tokens_of_a_line_are_those_of_its_pieces(gpt2, evaluation_data):
    """The paper's code tokenises the pieces; the line as a whole gives the same ids."""
    for facts in read_facts(evaluation_data / "webnlg", "test")[::20]:
        segments = (*source_segments(facts.triples), target_segment(facts.references[0]))
        ids = []
        for segment in segments[:-1]:
            piece = segment.text.removeprefix(segment.kind)
            ids += [gpt2.token_to_id(segment.kind), *gpt2.encode(piece).ids]
        ids += [*gpt2.encode(facts.references[0]).ids, gpt2.token_to_id("<eos_webnlg>")]
        assert gpt2.encode("".join(segment.text for segment in segments)).ids == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triples": []}, r"`triples` must be a list of triples in .*train.jsonl.gz, line 1, got \[\]"),
        ({"triples": [["a", "b"]]}, r"`triples` must hold \[subject, property, object\] in .*line 1, got \['a', 'b'\]"),
        ({"triples": [["a", "b", 3]]}, r"`triples` must be text in .*line 1, got 3"),
        (
            {"comments": []},
            r"`references` and `comments` must be lists of one length .*, got \['A.'\] and \[\]",
        ),
        ({"references": [None]}, r"`references` must be text in .*line 1, got None"),
        ({"seen": "yes"}, r"`seen` must be true or false in .*line 1, got 'yes'"),
    ],
)
def test_a_broken_row_is_named(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_webnlg(write_split(tmp_path, ROW | change), "train")


def test_a_missing_column_file_or_split_is_named(tmp_path):
    with pytest.raises(InputError, match=r"`comments` must be a column of .*, one of triples, references, got 'comm"):
        read_webnlg(write_split(tmp_path, {"triples": [["a", "b", "c"]], "references": ["A."]}), "train")
    with pytest.raises(InputError, match="`test` must be a readable file"):
        read_webnlg(tmp_path, "test")
    with pytest.raises(InputError, match="`split` must be one of train, validation, test, got 'dev'"):
        read_webnlg(tmp_path, "dev")
    with pytest.raises(InputError, match="`validation` must hold at least one row, got none"):
        read_webnlg(write_split(tmp_path, split="validation"), "validation")


@pytest.mark.parametrize("expected", TEN, ids=lambda entry: f"{entry.split}-{entry.index}")
def test_what_a_model_sees_and_learns_of_an_entry(expected, gpt2, gpt2_folder):
    """Ids of the pieces, one by one; the loss is that of the text and its end, never of `<target_webnlg>`."""
    source, end = [], gpt2.token_to_id("<eos_webnlg>")
    for line in expected.lines.split("\n"):
        kind = line[: line.index(">") + 1]
        source += [gpt2.token_to_id(kind), *gpt2.encode(line.removeprefix(kind)).ids]
    entry = Entry("".join(expected.lines.split("\n")), expected.references)
    split = GenerationExamples((entry,))
    tokenizer = load_tokenizer(gpt2_folder)
    add_tokens(tokenizer, ADDED_TOKENS)
    data = TaskData(GENERATION["webnlg"], split, {"validation": split, "test": split}, "")
    encoded = encode_task(data, tokenizer, GPT2Config(vocab_size=50273))
    assert isinstance(encoded, EncodedGeneration)
    assert encoded.prompts["test"].segments is None
    assert "token_type_ids" not in encoded.train[0]
    for item, reference in zip(encoded.train.items, expected.references, strict=True):
        text = [*gpt2.encode(reference).ids, end]
        assert item["input_ids"] == source + text
        assert item["labels"] == [-100] * len(source) + text
    assert list(encoded.prompts) == ["test"]
    assert list(encoded.prompts["test"].ids[0]) == source
    assert encoded.stops == tuple(range(50267, 50273))


@pytest.mark.parametrize("expected", TEN, ids=lambda entry: f"{entry.split}-{entry.index}")
def test_the_segments_that_a_model_gets_of_an_entry(expected, gpt2, gpt2_folder):
    """At every token the id of the special token that its line begins with, at the text that of `<target_webnlg>`."""
    segments = []
    for line in expected.lines.split("\n"):
        kind = line[: line.index(">") + 1]
        segments += [gpt2.token_to_id(kind)] * (1 + len(gpt2.encode(line.removeprefix(kind)).ids))
    split = GenerationExamples((Entry("".join(expected.lines.split("\n")), expected.references),))
    tokenizer = load_tokenizer(gpt2_folder)
    add_tokens(tokenizer, ADDED_TOKENS)
    task = replace(GENERATION["webnlg"], segments=SEGMENT_TOKENS)
    data = TaskData(task, split, {"validation": split, "test": split}, "")
    encoded = encode_task(data, tokenizer, GPT2Config(vocab_size=50273))
    assert isinstance(encoded, EncodedGeneration)
    for item, reference in zip(encoded.train.items, expected.references, strict=True):
        assert item["token_type_ids"] == segments + [50272] * (1 + len(gpt2.encode(reference).ids))
    assert list(map(list, encoded.prompts["test"].segments or ())) == [segments]


def test_the_segments_of_one_entry_are_those_written_by_hand(gpt2_folder):
    """Of the tokens in the test below."""
    tokenizer = load_tokenizer(gpt2_folder)
    add_tokens(tokenizer, ADDED_TOKENS)
    ids = tokenizer("".join(TEN[0].lines.split("\n")) + "It is.<eos_webnlg>")["input_ids"]
    openers = [50267, 50269, 50270, 50271, 50272]
    expected = [50267] + [50269] * 7 + [50270] * 4 + [50271] * 8 + [50272] * 5
    assert tokenizer.convert_ids_to_tokens(openers) == list(SEGMENT_TOKENS)
    assert segment_ids(ids, openers) == expected


def test_the_ids_of_one_entry_are_those_written_by_hand(gpt2):
    """No space before a piece; underscores and capitals inside words are kept."""
    line = "".join(TEN[0].lines.split("\n"))
    assert gpt2.encode(line).tokens == [
        "<bos_webnlg>", "<subject>", "A", "ar", "hus", "_", "Air", "port", "<property>", "city", "S", "erved",
        "<object>", '"', "A", "ar", "hus", ",", "\u0120Denmark", '"', "<target_webnlg>",
    ]  # fmt: skip
