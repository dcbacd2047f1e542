"""The labelled set of the demo: balanced, clean, nothing in two splits; and the script that makes it from books."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripts import load_script

import mlpfusion
from mlpfusion.demo.authors import LABEL, SPLITS, TEXT, author_rows, load_authors, write_authors
from mlpfusion.demo.model import demo_sentences

SET = Path(mlpfusion.__file__).parent / "demo" / "four_authors.jsonl.gz"
SCRIPT = "examples/four_authors.py"
SIZES = {"train": 320, "validation": 100, "test": 200}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[dict[str, str]]]:
    return {split: author_rows(split) for split in SPLITS}


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script(SCRIPT)


def test_every_split_is_balanced(splits):
    for split, rows in splits.items():
        assert set(Counter(row[LABEL] for row in rows).values()) == {SIZES[split]}
        assert len({row[LABEL] for row in rows}) == 4


def test_no_sentence_is_there_twice_in_any_split(splits):
    keys = [re.sub(r"\W+", " ", row[TEXT].lower()) for rows in splits.values() for row in rows]
    assert len(keys) == len(set(keys)) == 4 * sum(SIZES.values())


def test_the_test_sentences_are_from_other_books_of_the_same_authors(splits):
    books = {split: {(row[LABEL], row["book"]) for row in rows} for split, rows in splits.items()}
    assert books["train"] == books["validation"]
    assert {author for author, _ in books["train"]} == {author for author, _ in books["test"]}
    assert not books["train"] & books["test"]


def test_sentences_are_whole_and_plain(splits):
    for row in (row for rows in splits.values() for row in rows):
        text = row[TEXT]
        assert 8 <= len(text.split()) <= 40, text
        assert re.fullmatch(r"\"?[A-Z].*[.!?]\"?", text), text
        assert text.isascii()
        assert not re.search(r"[_*#\[\]<>|{}\\]|\d|  |chapter [ivxl]+\b", text.lower()), text
        assert text.count('"') % 2 == 0


def test_the_set_is_small_and_says_where_it_is_from():
    assert SET.stat().st_size < 150_000
    readme = (SET.parent / "README.md").read_text()
    for rows in map(author_rows, SPLITS):
        assert all(row[LABEL] in readme and row["book"] in readme for row in rows)
    assert "public domain" in readme


def test_the_demos_sentences_are_held_out_ones_of_all_authors(splits):
    held_out = {row[TEXT]: row[LABEL] for row in splits["validation"]}
    assert set(Counter(held_out[text] for text in demo_sentences()).values()) == {12}


def test_the_written_files_are_read_as_any_data_of_ones_own(splits, tmp_path):
    write_authors(tmp_path / "set")
    assert {file.name for file in (tmp_path / "set").iterdir()} == {
        *(f"{split}.jsonl" for split in SPLITS),
        "README.md",
        "mlp_fusion_files.json",
    }
    data = load_authors(tmp_path / "set")
    assert list(data.evaluation) == ["validation", "test"]
    for split, examples in {"train": data.train, **data.evaluation}.items():
        assert [text for (text,) in examples.texts] == [row[TEXT] for row in splits[split]]
        assert [data.task.label_names[int(label)] for label in examples.labels] == [row[LABEL] for row in splits[split]]


@pytest.mark.slow
def test_the_script_makes_the_set_from_the_books_byte_for_byte(evaluation_data, script, tmp_path):
    books = evaluation_data / "lm" / "classic_books" / "train.txt.gz"
    result = CliRunner().invoke(script.main, [str(books), str(tmp_path / "set.gz")])
    assert result.exit_code == 0, result.output
    assert gzip.decompress((tmp_path / "set.gz").read_bytes()) == gzip.decompress(SET.read_bytes())


def test_the_script_reads_paragraphs_and_cuts_sentences(script, tmp_path):
    path = tmp_path / "books.txt"
    path.write_text(
        "# Title: A Book\n\n## Author: Nobody\n\n##  CHAPTER I. It was not a very long chapter at all.\n\n"
        "Mr. Smith said that he had _never_ seen so fine a morning. \u201cDid you not?\u201d asked she. It was "
        "\u201ca long and weary way to the sea. Mr. Smith said that he had never seen so fine a morning!\n\n"
        "This is a verse which has eight words\nand another one to go with it.\n\n<|endoftext|>\n"
    )
    books = script.read_books(path)
    assert list(books) == ["A Book"]
    assert len(books["A Book"]) == 1
    assert list(script.sentences(books["A Book"])) == [
        "Mr. Smith said that he had never seen so fine a morning.",
    ]
    result = CliRunner().invoke(script.main, [str(path), str(tmp_path / "out.gz")])
    assert result.exit_code == 1
    assert "`books` must hold David Copperfield, Great Expectations" in result.output
    assert not (tmp_path / "out.gz").exists()


def test_a_row_is_one_json_object_with_four_fields():
    lines = gzip.decompress(SET.read_bytes()).decode().splitlines()
    assert {tuple(json.loads(line)) for line in lines} == {("split", "author", "book", "sentence")}
