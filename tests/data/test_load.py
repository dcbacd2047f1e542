import csv
import gzip
import io
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.files import folder
from mlpfusion.data.labelled.glue import GLUE, CustomTask
from mlpfusion.data.labelled.load import load_files
from mlpfusion.data.tasks import load_task
from mlpfusion.errors import InputError
from mlpfusion.options.task import TaskOptions

# Rows of the official download, or of the parts of it that the data folder holds; both are counted there.
COUNTS = {"cola": (8551, 1043), "mnli": (19998, 9815), "mrpc": (3668, 408), "qnli": (12259, 5463), "rte": (2490, 277)}
COUNTS |= {"sst2": (67349, 872), "stsb": (5749, 1500), "wnli": (635, 71)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = io.StringIO()
    if ".jsonl" in path.name:
        text.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(text, rows[0], delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def glue_folder(tmp_path: Path, task: str, splits: dict[str, list[dict[str, Any]]]) -> Path:
    folder = tmp_path / "data" / GLUE[task].folder
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        write_rows(folder / f"{name}.jsonl.gz", rows)
    return tmp_path / "data"


@pytest.mark.parametrize("name", COUNTS)
def test_the_tasks_of_the_data_folder_load(name, evaluation_data, monkeypatch):
    monkeypatch.setenv("MLPFUSION_DATA", str(evaluation_data))
    data = load_task(name)
    task = data.task
    assert (len(data.train), len(data.evaluation[task.splits[0]])) == COUNTS[name]
    assert tuple(data.evaluation) == task.splits
    assert ("train_subset" in data.source) == (name in ("mnli", "qnli"))
    for examples in (data.train, *data.evaluation.values()):
        assert all(len(texts) == len(task.text_columns) for texts in examples.texts)
        if task.is_regression:
            assert 0 <= min(examples.labels) < max(examples.labels) <= 5
        else:
            assert set(examples.labels) == set(range(task.num_labels))


def test_a_split_that_is_not_there_is_named(evaluation_data, monkeypatch):
    monkeypatch.setenv("MLPFUSION_DATA", str(evaluation_data))
    with pytest.raises(InputError, match="`task` must have a validation split in .*QQP, qqp has none"):
        load_task("qqp")


SST2 = [{"sentence": f"text {i}", "label": i % 2} for i in range(4)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "`train` must hold at least one row, got none in .*SST-2/train.jsonl.gz"),
        (
            [{"text": "a", "label": 0}],
            "`text_column` must be a column of .*train.jsonl.gz, line 1, one of text, label, got 'sent",
        ),
        (
            [{"sentence": "a"}],
            "`label_column` must be a column of .*train.jsonl.gz, line 1, one of sentence, got 'label'",
        ),
        ([{"sentence": 3, "label": 0}], "`sentence` must be text in .*train.jsonl.gz, line 1, got 3"),
        ([*SST2, {"sentence": "a", "label": 2}], "`label` must be one of 0 to 1 in .*train.jsonl.gz, line 5, got 2"),
        ([*SST2, {"sentence": "a", "label": -1}], "`label` must be one of 0 to 1 in .*train.jsonl.gz, line 5, got -1"),
        ([{"sentence": "a", "label": 0.5}], "`label` must be one of 0 to 1 in .*train.jsonl.gz, line 1, got 0.5"),
        ([{"sentence": "a", "label": True}], "`label` must be one of 0 to 1 in .*train.jsonl.gz, line 1, got True"),
    ],
)
def test_bad_rows_are_refused(rows, message, tmp_path, monkeypatch):
    folder = glue_folder(tmp_path, "sst2", {"train": rows, "validation": SST2})
    monkeypatch.setenv("MLPFUSION_DATA", str(folder))
    with pytest.raises(InputError, match=message):
        load_task("sst2")


def test_a_score_that_is_no_number_is_refused(tmp_path, monkeypatch):
    rows = [{"sentence1": "a", "sentence2": "b", "label": float("nan")}]
    monkeypatch.setenv("MLPFUSION_DATA", str(glue_folder(tmp_path, "stsb", {"train": rows, "validation": rows})))
    with pytest.raises(InputError, match="`label` must be a finite number in .*train.jsonl.gz, line 1, got nan"):
        load_task("stsb")


def test_unknown_tasks_and_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="`task` must be one of cola, mnli, .*, got 'sst3'"):
        load_task("sst3")
    monkeypatch.setenv("MLPFUSION_DATA", str(tmp_path))
    with pytest.raises(InputError, match="`MLPFUSION_DATA` must name a folder that holds glue/SST-2"):
        load_task("sst2")


def fake_datasets(monkeypatch, load_dataset) -> None:
    module: Any = ModuleType("datasets")
    module.load_dataset = load_dataset
    module.exceptions = SimpleNamespace(DatasetsError=RuntimeError)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_gives_the_same_as_a_folder(tmp_path, monkeypatch):
    splits = {"train": SST2, "validation": SST2[:2]}
    monkeypatch.setenv("MLPFUSION_DATA", str(glue_folder(tmp_path, "sst2", splits)))
    local = load_task("sst2")
    asked = []

    def load_dataset(dataset, config, *, split):
        asked.append((dataset, config, split))
        return splits[split]

    fake_datasets(monkeypatch, load_dataset)
    monkeypatch.setenv("MLPFUSION_DATA", "")
    hub = load_task("sst2")
    assert (hub.train, hub.evaluation) == (local.train, local.evaluation)
    assert asked == [("nyu-mll/glue", "sst2", "train"), ("nyu-mll/glue", "sst2", "validation")]
    assert hub.source == "nyu-mll/glue sst2 train, nyu-mll/glue sst2 validation"


def test_only_a_checkout_of_the_source_reads_a_folder_that_nobody_named_and_only_beside_itself(tmp_path, monkeypatch):
    glue_folder(tmp_path / "shared", "sst2", {"train": SST2, "validation": SST2[:2]})
    for name in ("work", "installed"):
        (tmp_path / name).mkdir()
    fake_datasets(monkeypatch, lambda *_args, split: SST2)
    monkeypatch.delenv("MLPFUSION_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(folder, "_CHECKOUT", tmp_path / "installed")
    assert "nyu-mll/glue sst2 train" in load_task("sst2").source
    (tmp_path / "installed" / "pyproject.toml").touch()
    assert "glue/SST-2/train.jsonl.gz" in load_task("sst2").source


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    def load_dataset(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach\nthe Hub")

    fake_datasets(monkeypatch, load_dataset)
    monkeypatch.setenv("MLPFUSION_DATA", "")
    with pytest.raises(
        InputError, match="`task` must be in MLPFUSION_DATA, or .*nyu-mll/glue rte train: Couldn't reach the Hub"
    ):
        load_task("rte")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError,
        match=r"must be in MLPFUSION_DATA unless `pip install 'mlpfusion\[data\]'` is done, got nyu-mll/glue rte",
    ):
        load_task("rte")


TOPICS = [{"title": f"t{i}", "body": f"b{i}", "topic": ("sport", "art", "law")[i % 3]} for i in range(6)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv"])
def test_own_files_load_whatever_their_form(name, tmp_path):
    path = write_rows(tmp_path / name, TOPICS)
    data = load_files(path, path, CustomTask(("title", "body"), "topic"))
    assert data.task.label_names == ("art", "law", "sport")
    assert data.task.metrics == ("accuracy",)
    assert data.train.texts[1] == ("t1", "b1")
    assert data.train.labels == (2, 0, 1, 2, 0, 1)
    assert data.evaluation["validation"] == data.train


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
    path = write_rows(tmp_path / "a.csv", [{"x": "a", "y": label} for label in (10, 9, 10, 9)])
    data = load_files(path, path, CustomTask(("x",), "y"))
    assert (data.task.label_names, data.train.labels) == (("9", "10"), (1, 0, 1, 0))
    assert data.task.metrics == ("accuracy", "f1")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"text_column": ("foo",)}, "`text_column` must be left out with `task`, got foo"),
        ({"label_column": "bar"}, "`label_column` must be left out with `task`, got bar"),
        ({"regression": True}, "`regression` must be left out with `task`, got True"),
    ],
)
def test_what_a_task_of_glue_has_itself_is_not_dropped_in_silence(given, named):
    with pytest.raises(InputError, match=f"{named}: sst2 has its own columns and labels"):
        chosen_data(TaskOptions(task="sst2", **given), None)


def test_a_regression_takes_numbers(tmp_path):
    for name in ("a.csv", "a.jsonl"):
        path = write_rows(tmp_path / name, [{"x": "a", "y": 0.5}, {"x": "b", "y": 2}])
        data = load_files(path, path, CustomTask(("x",), "y", regression=True))
        assert data.train.labels == (0.5, 2.0)
        assert (data.task.num_labels, data.task.metrics) == (1, ("pearson", "spearman"))


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            [{"x": "a", "y": 0.5}],
            None,
            "`label` must be text or a whole number for a class, got 0.5 in .*a.jsonl, line 1; --regression",
        ),
        ([{"x": "a", "y": "p"}], None, "`label` must have at least two different values in train, got \\['p'\\]"),
        (
            [{"x": "a", "y": "p"}, {"x": "a", "y": "q"}],
            [{"x": "a", "y": "r"}],
            "`label` must be one of p, q in .*b.jsonl, line 1, got 'r'",
        ),
        ([{"x": "a", "z": "p"}], None, "`label_column` must be a column of .*a.jsonl, line 1, one of x, z, got 'y'"),
    ],
)
def test_bad_own_files_are_refused(train, validation, message, tmp_path):
    paths = write_rows(tmp_path / "a.jsonl", train), write_rows(tmp_path / "b.jsonl", validation or train)
    with pytest.raises(InputError, match=message):
        load_files(*paths, CustomTask(("x",), "y"))


def test_ragged_tables_and_other_files_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\na,1\nb\n")
    with pytest.raises(
        InputError, match="`train` must have as many fields in every row, line 3 of .*a.csv has 1, the header 2"
    ):
        load_files(path, path, CustomTask(("x",), "y"))
    with pytest.raises(
        InputError, match="`train` must be a .jsonl, .ndjson, .json, .csv, .tsv or .parquet file, .*got .*a.xml"
    ):
        load_files(tmp_path / "a.xml", path, CustomTask(("x",), "y"))
