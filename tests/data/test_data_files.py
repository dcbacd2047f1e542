"""Data files are read as what they are: nothing merged, nothing lost, nothing that fills the memory."""

import codecs
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.files import json_text, lines
from mlpfusion.data.files.rows import iterate_rows, read_table
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.labelled.glue import CustomTask
from mlpfusion.data.labelled.load import load_files
from mlpfusion.errors import DataFileWarning, InputError
from mlpfusion.options.task import TaskOptions

# Any character but the halves of surrogate pairs and NUL.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
FEW = st.sampled_from(
    ['"', '""', ",", ";", "\t", "\n", "\r", "\\", " ", "\ufeff", "\u2028", "a", "\u00e9", "\U0001f600"]
)
CELL = st.one_of(st.text(CHARACTERS, max_size=8), st.lists(FEW, max_size=6).map("".join))
property_of_files = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def write(path: Path, content: str | bytes) -> Path:
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


def values(path: Path) -> list[dict[str, Any]]:
    return [dict(row.values) for row in iterate_rows(path, "train")]


def written(rows: Sequence[Sequence[str]], **form: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **form).writerows([("x", "y"), *rows])
    return text.getvalue()


def as_values(rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    return [{"x": first, "y": second} for first, second in rows]


@property_of_files
@given(
    rows=st.lists(st.tuples(CELL, CELL), max_size=5),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    name=st.sampled_from(["a.csv", "A.CSV", "a.csv.gz"]),
)
def test_what_a_writer_of_csv_writes_is_read_back(rows, delimiter, quoting, encoding, name, tmp_path):
    text = written(rows, delimiter=delimiter, quoting=quoting)
    assert values(write(tmp_path / name, text.encode(encoding))) == as_values(rows)


@pytest.mark.filterwarnings("ignore::mlpfusion.errors.DataFileWarning")
@property_of_files
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_lines_joined_by_tabs_are_read_back_marks_and_all(rows, end, tmp_path):
    kept = [tuple(cell.translate({9: "", 10: ""}) for cell in row) for row in rows]
    assume(end == "\r\n" or not any("".join(row).endswith("\r") for row in kept))
    text = "".join("\t".join(row) + end for row in [("x", "y"), *kept])
    assert values(write(tmp_path / "a.tsv", text)) == as_values(kept)


@pytest.mark.filterwarnings("ignore::mlpfusion.errors.DataFileWarning")
@property_of_files
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=5))
def test_a_tsv_with_all_cells_in_quotation_marks_is_read_back(rows, tmp_path):
    kept = [tuple(cell.translate({9: "", 10: ""}) for cell in row) for row in rows]
    path = write(tmp_path / "a.tsv", written(kept, delimiter="\t", quoting=csv.QUOTE_ALL))
    assert values(path) == as_values(kept)


def test_how_the_quotation_marks_of_a_tsv_are_read_is_said_where_a_spreadsheet_may_have_made_them(tmp_path):
    rows = [('say "x"', "1")]
    minimal = write(tmp_path / "a.tsv", written(rows, delimiter="\t"))
    with pytest.warns(DataFileWarning, match="a.tsv: the quotation marks around cells are kept: .*give CSV"):
        assert values(minimal) == as_values([('"say ""x"""', "1")])
    every = write(tmp_path / "b.tsv", written(rows, delimiter="\t", quoting=csv.QUOTE_ALL))
    with pytest.warns(DataFileWarning, match="b.tsv: the quotation marks around cells are left out, as .*give JSONL"):
        assert values(every) == as_values(rows)


@property_of_files
@given(rows=st.lists(st.tuples(CELL, CELL), max_size=5), indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_what_json_writes_is_read_back(rows, indent, ascii_only, tmp_path):
    wanted = as_values(rows)
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in wanted]
    for name in ("a.jsonl", "a.ndjson.gz", "a.json"):
        assert values(write(tmp_path / name, "\n".join(lines))) == wanted
    array = json.dumps(wanted, indent=indent, ensure_ascii=ascii_only)
    assert values(write(tmp_path / "b.json", array)) == wanted
    texts = [row["x"] for row in wanted if row["x"].strip()]
    if texts:
        assert read_texts(write(tmp_path / "c.json", json.dumps(texts, indent=indent))) == [t.strip() for t in texts]
        assert read_texts(tmp_path / "b.json", column="x") == [text.strip() for text in texts]


def test_a_tsv_has_a_row_a_line_and_keeps_quotation_marks(tmp_path):
    text = 'text\tlabel\n"Great start\tpos\nok\tneg\nhe said: the end"\tneg\n"so" it goes\tpos\nx\tpos\n'
    found = values(write(tmp_path / "a.tsv", text))
    assert [row["text"] for row in found] == ['"Great start', "ok", 'he said: the end"', '"so" it goes', "x"]


def test_a_tsv_line_with_another_number_of_cells_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\nok\tneg\n"two\nlines"\tpos\n')
    with pytest.raises(InputError, match="line 3 of .*a.tsv has 1, the header 2; a .tsv has no tabs and line breaks"):
        values(path)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_part_of_the_text(encoding, name, tmp_path):
    texts = {
        "a.txt": "caf\u00e9\nyes\n",
        "a.csv": "x,y\ncaf\u00e9,1\nyes,2\n",
        "a.tsv": "x\ty\r\ncaf\u00e9\t1\r\nyes\t2",
    }
    text = texts.get(name, '{"x": "caf\u00e9"}\n{"x": "yes"}')
    path = write(tmp_path / name, text.encode(encoding))
    assert read_texts(path, column=None if name == "a.txt" else "x") == ["caf\u00e9", "yes"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
def test_windows_1252_is_guessed_and_said(name, tmp_path):
    text = {
        "a.csv": "x,y\nplain,1\ncaf\u00e9 \u201cx\u201d,1\n",
        "a.tsv": "x\ty\nplain\t1\ncaf\u00e9 \u201cx\u201d\t1\n",
    }
    content = text.get(name, "plain\ncaf\u00e9 \u201cx\u201d\n")
    path = write(tmp_path / name, content.encode("cp1252"))
    with pytest.warns(DataFileWarning, match=f"{name} is not UTF-8, and is read as Windows-1252"):
        assert read_texts(path, column=None if name == "a.txt" else "x") == ["plain", "caf\u00e9 \u201cx\u201d"]


@pytest.mark.filterwarnings("ignore::mlpfusion.errors.DataFileWarning")
def test_a_file_that_is_both_utf8_and_windows_1252_is_refused_in_any_order(tmp_path):
    parts = ["caf\u00e9\n".encode(), "caf\u00e9\n".encode("cp1252")]
    for order in (parts, parts[::-1]):
        path = write(tmp_path / "a.txt", b"plain\n" + b"".join(order))
        with pytest.raises(InputError, match="`data` must be a readable text file, got .*a.txt, line 3: "):
            read_texts(path)


def test_a_csv_divided_by_semicolons_or_tabs_is_read(tmp_path):
    for mark in ";\t":
        text = f'text{mark}label\n"a{mark}b, c"{mark}1\n'
        assert values(write(tmp_path / "a.csv", text)) == [{"text": f"a{mark}b, c", "label": "1"}]
    assert values(write(tmp_path / "a.csv", 'text,"a;b"\nx;y,1\n')) == [{"text": "x;y", "a;b": "1"}]
    assert values(write(tmp_path / "a.csv", "text,label\rold,1\rmac,2\r")) == [
        {"text": "old", "label": "1"},
        {"text": "mac", "label": "2"},
    ]


def test_names_in_a_header_and_labels_are_stripped(tmp_path):
    path = write(tmp_path / "a.csv", "text , label\na,pos \nb,pos\nc, neg\n")
    data = load_files(path, path, CustomTask(("text",), "label"))
    assert (data.task.label_names, data.train.labels) == (("neg", "pos"), (1, 1, 0))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", ",text,label\n0,a,1\n", "the header of .*a.csv has an empty one: pandas leaves it out by `index=Fa"),
        ("a.csv", "text,label,\na,1,\n", "the header of .*a.csv has an empty one: is there a delimiter too much"),
        ("a.tsv", "text\ttext \na\tb\n", "must not have two columns of one name, .*a.tsv has 'text' twice"),
        ("a.csv", 'text,label\n"he said \\"hi\\"",1\n', "is not in line 2: .*inside a quoted cell is written twice"),
        ("a.csv", "text,label\na,1\nb,1,2\n", "line 3 of .*a.csv has 3, the header 2"),
        ("a.csv", f'text,label\n"{"x" * 140_000}",1\n', "is not in line 2: field larger than field limit"),
        ("a.csv", "text,label\na\0b,1\n", "must be a readable text file, got .*: NUL character in line 2"),
        ("a.csv", b"text,label\n\x81,1\n", "must be a readable text file, got .*a.csv, line 2"),
        ("a.jsonl", '{"x": "a"}\n{"x": "\\ud800"}', "must be JSON in .*line 2: half a surrogate pair"),
        ("a.jsonl", '{"\\uDFFF": "a"}', "must be JSON in .*line 1: half a surrogate pair"),
        ("a.jsonl", '{"x": ' + "[" * 50_000, "must be JSON in .*line 1: nested too deeply"),
        ("a.jsonl", '{"x": 1} {"x": 2}', "must be JSON in .*line 1: more after the end of the value: ' {\"x\": 2}'"),
        (
            "a.jsonl",
            '{"x": "a"}\n{"x": "b", "y": 1, "x": "c"}',
            "line 2: an object must not have one name twice, got 'x'",
        ),
        ("a.jsonl", '{"x": {"y": 1, "y": 1}}', "line 1: an object must not have one name twice, got 'y'"),
        ("a.jsonl", '{"x": "b", "\\u0078": "c"}', "line 1: an object must not have one name twice, got 'x'"),
        ("a.json", '{"x": "a"}\n{"x": "b", "x": "c"}', "line 2: an object must not have one name twice, got 'x'"),
        ("a.json", '[\n{"x": "a"},\n{"x": 1, "x": 1}]', "line 3: an object must not have one name twice, got 'x'"),
        ("a.jsonl", '{"x": ' + "9" * 5000 + "}", "must be JSON in .*line 1: Exceeds the limit"),
        ("a.jsonl", "caf\u00e9".encode("cp1252"), "must be a readable text file, got .*line 1: 'utf-8' codec"),
        ("a.json", '[\n{"x": "a"},\n{"x": "\\ud800"}]', "must be JSON in .*line 3: half a surrogate pair"),
        ("a.json", '[\n{"x": "a"},\n{"x": ', "must be JSON in .*line 3: "),
        ("a.json", '[{"x": "a"}\n{"x": "b"}]', "must be JSON in .*line 1: a comma or the end of the array must"),
        ("a.json", '[{"x": "a"}] x', "must be one JSON array, .*a.json goes on after its end"),
        ("a.json", '[{"x": "a"}, 3]', "must be a JSON object in .*line 1, got int"),
        ("a.json", '{\n"x": "a"}', "must be JSON in .*line 1: "),
        ("a.json", '["a", "b"]', "must be a JSON object in .*line 1, got str"),
    ],
)
def test_what_is_broken_is_refused_with_its_line(name, content, message, tmp_path):
    with pytest.raises(InputError, match="`train` " + ".*" + message):
        read_table(write(tmp_path / name, content), "train")


def test_a_broken_gz_is_refused(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(bytes.fromhex("1f8b0800000000000203f6") + bytes(9))
    with pytest.raises(zlib.error):
        gzip.decompress((tmp_path / "a.txt.gz").read_bytes())
    with pytest.raises(InputError, match="`data` must be a readable text file, got .*a.txt.gz, line 1: Error -3"):
        read_texts(tmp_path / "a.txt.gz")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.csv.gz", "a.tsv.gz", "a.json.gz"])
def test_a_line_that_would_fill_the_memory_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(lines.read_lines, "__kwdefaults__", {"guess": True, "max_line": 1000})
    monkeypatch.setattr(json_text, "MAX_ARRAY", 1000)
    path = write(tmp_path / name, "x" * 5000 + "\n")
    with pytest.raises(InputError, match="must have lines of at most 0 MiB, line 1 of .* is longer"):
        read_texts(path, column=None if ".txt" in name else "x")


def test_a_file_above_the_limits_is_refused_but_its_first_texts_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl.gz", '{"x": "a"}\n' * 100)
    monkeypatch.setattr(lines, "MAX_ROWS", 50)
    with pytest.raises(InputError, match="`train` must hold .* and 50 lines, .*a.jsonl.gz holds more: give a part"):
        read_table(path, "train")
    assert len(read_texts(path, column="x", max_samples=50)) == 50
    with pytest.raises(InputError, match="`train` must have at most 50 lines or rows, .*a.json has more"):
        read_table(write(tmp_path / "a.json", json.dumps([{"x": "a"}] * 60)), "train")
    monkeypatch.setattr(lines, "MAX_FILE", 200)
    with pytest.raises(InputError, match="`data` must hold at most .*, .*a.txt holds more"):
        read_texts(write(tmp_path / "a.txt", "twenty characters...\n" * 12))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.txt"])
def test_a_file_of_too_many_lines_is_refused_before_any_is_read(name, tmp_path, monkeypatch):
    path = write(tmp_path / name, "no row\n" * 60)
    monkeypatch.setattr(lines, "MAX_ROWS", 50)
    monkeypatch.setattr(lines, "_decoded", lambda *_, **__: pytest.fail("a line was read"))
    if name != "a.txt":
        with pytest.raises(InputError, match=f"`train` must hold .* and 50 lines, .*{name} holds more: give a part"):
            read_table(path, "train")
    with pytest.raises(InputError, match=f"`data` must hold .* and 50 lines, .*{name} holds more: give a part"):
        read_texts(path, column=None if name == "a.txt" else "x")


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_ARRAY", 1000)
    path = write(tmp_path / "a.json", json.dumps([{"x": "a"}] * 100, indent=1))
    with pytest.raises(InputError, match="`train` must have at most 0 Mi characters in one JSON array, .*a.json has m"):
        read_table(path, "train")


def test_devices_pipes_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for file, kind in [("/dev/zero", "a device or a pipe"), (tmp_path / "pipe.txt", "a dev"), (tmp_path, "a folder")]:
        with pytest.raises(InputError, match=f"`data` must be a regular file, got .*, which is {kind}"):
            read_texts(file)
    for name in ("x" * 300 + ".txt", "a\0b.csv"):
        with pytest.raises(InputError, match="`train` must be a"):
            read_table(tmp_path / name, "train")


def test_a_column_that_does_nothing_or_is_missing_is_an_error(tmp_path):
    text, table = write(tmp_path / "a.txt", "one\n"), write(tmp_path / "a.csv", "text,label\none,1\n")
    array = write(tmp_path / "a.json", '["one"]')
    with pytest.raises(InputError, match="`column` must be left out for .*a.txt, which is read as plain text"):
        read_texts(text, column="text")
    with pytest.raises(InputError, match="`column` must name the column of .*a.csv .*, one of text, label, got none"):
        read_texts(table)
    with pytest.raises(InputError, match="`column` must be a text column of .*a.csv, line 2, one of text, label, got"):
        read_texts(table, column="texts")
    with pytest.raises(InputError, match="`column` must be left out for .*a.json, whose line 1 holds a text without"):
        read_texts(array, column="text")
    assert read_texts(table, column="text") == read_texts(array) == read_texts(text) == ["one"]


def test_labels_of_any_form_have_one_class_a_name(tmp_path):
    column = CustomTask(("x",), "y")
    odd = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"x": "a", "y": y}) for y in ["\u00b2", "--5", "9" * 5000]))
    assert load_files(odd, odd, column).task.label_names == ("--5", "9" * 5000, "\u00b2")
    mixed = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"x": "a", "y": y}) for y in [10, "9", 9, " 10"]))
    data = load_files(mixed, mixed, column)
    assert (data.task.label_names, data.train.labels) == (("9", "10"), (1, 0, 0, 1))
    huge = write(tmp_path / "c.jsonl", '{"x": "a", "y": 1' + "0" * 400 + "}")
    with pytest.raises(
        InputError, match="`label` must be a finite number in .*c.jsonl, line 1, got a whole number of 1329 bits"
    ):
        load_files(huge, huge, CustomTask(("x",), "y", regression=True))


def test_a_tsv_of_glue_loads_with_the_numbers_of_its_labels(tmp_path):
    text = 'sentence\tlabel\n"a smile\t1\n5" of rain\t0\n'
    path = write(tmp_path / "train.tsv", text)
    data = chosen_data(TaskOptions(task="sst2", train=str(path)), str(path))
    assert (data.train.texts, data.train.labels) == ((('"a smile',), ('5" of rain',)), (1, 0))


def test_a_data_set_of_the_hub_and_a_parquet_file_are_read_for_training_too(tmp_path, monkeypatch):
    library = ModuleType("datasets")
    rows = [{"x": "a", "y": 0}, {"x": "b", "y": 1}]
    library.__dict__.update(load_dataset=lambda *_, **__: rows, exceptions=SimpleNamespace(DatasetsError=RuntimeError))
    monkeypatch.setitem(sys.modules, "datasets", library)
    (tmp_path / "A.Parquet").write_bytes(b"PAR1")
    data = load_files("hub:owner/name:train", tmp_path / "A.Parquet", CustomTask(("x",), "y"))
    assert (data.train.labels, data.source) == ((0, 1), "hub:owner/name:train, A.Parquet")
    rows[1]["y"] = 0.5
    with pytest.raises(InputError, match="`label` must be text or .*, got 0.5 in hub:owner/name, row 2"):
        load_files("hub:owner/name", "hub:owner/name", CustomTask(("x",), "y"))


def test_marks_of_utf_16_and_32_are_told_apart():
    assert list(lines._WIDE)[:2] == [codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE]
