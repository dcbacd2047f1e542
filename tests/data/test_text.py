import gzip
import json
from pathlib import Path

import pytest

from mlpfusion.checkpoint.tokenizer import token_batches
from mlpfusion.data.files.text import read_texts
from mlpfusion.errors import InputError


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_is_one_a_line(name, tmp_path):
    path = write(tmp_path / name, "one\n\n  two \nthree\n")
    assert read_texts(path) == ["one", "two", "three"]
    assert read_texts(path, max_samples=2) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_gives_the_named_column(name, tmp_path):
    path = write(tmp_path / name, "\n".join(json.dumps({"x": f"text {i}", "y": 3}) for i in range(3)))
    assert read_texts(path, column="x") == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        ("a.jsonl", '{"x": "t"}', None, "`column` must name the column of .* that holds the text, one of x, got none"),
        ("a.jsonl", '{"x": "t"}', "z", "`column` must be a text column of .*, line 1, one of x, got 'z'"),
        ("a.jsonl", '{"x": 3}', "x", "`column` must be a text column"),
        ("a.jsonl", "[1]", "x", "`data` must be a JSON object in .*, line 1, got list"),
        ("a.jsonl", "{", "x", "`data` must be JSON in .*line 1"),
        ("a.txt", "\n\n", None, "`data` must hold at least one text"),
    ],
)
def test_bad_files_are_refused(name, text, column, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_texts(write(tmp_path / name, text), column=column)


def test_missing_truncated_and_binary_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="`data` must be a readable file, got .*none.txt: .*No such file"):
        read_texts(tmp_path / "none.txt")
    cut = write(tmp_path / "cut.txt.gz", "text\n" * 1000)
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(InputError, match="`data` must be a readable text file"):
        read_texts(cut)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="`data` must be a readable text file"):
        read_texts(tmp_path / "binary.txt")
    with pytest.raises(InputError, match="`max_samples` must be at least 1, got 0"):
        read_texts(cut, max_samples=0)


def test_batches_hold_every_text_once_with_little_padding(minilm):
    texts = [f"{'word ' * (i % 40)}end" for i in range(70)]
    batches = token_batches(minilm, texts)
    assert sum(len(batch["input_ids"]) for batch in batches) == 70
    assert all(batch["attention_mask"].any(0).all() for batch in batches)
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padding < 0.4 * sum(batch["attention_mask"].numel() for batch in batches)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="`model` must come with a tokenizer"):
        token_batches(tmp_path, ["text"])
