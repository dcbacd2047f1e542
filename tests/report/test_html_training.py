"""The parts of the report on training: the numbers of the records, in tables and in what charts say."""

from pathlib import Path
from typing import Any

import pytest
from command import call, refused
from html_page import Page, assert_asks_for_nothing
from tuned_records import make_distill_record, make_run, make_tune_record

from mlpfusion.record import Origin
from mlpfusion.report.card import tune_card
from mlpfusion.report.html.page import report
from mlpfusion.tune.record import DISTILL_RECORD_FILE, TUNE_RECORD_FILE

LOCAL = Origin("cut", is_hub_id=False, revision=None, commit=None)
SCORES, RUNS = "Scores at the chosen learning rate", "Every run"


def page_of(*records: Any) -> Page:
    source = report(records)
    assert_asks_for_nothing(source)
    return Page(source)


def saved(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    (folder / name).write_text(text)
    return folder


def test_the_numbers_of_a_tuning_are_those_of_its_record_and_its_card(tmp_path):
    record = make_tune_record()
    page = page_of(record)
    (header, *rows), card = page.tables[SCORES], tune_card(record, tmp_path, LOCAL)
    assert header == ["split", "metric", "mean over 2 seeds", "standard deviation"]
    (accuracy, spread), f1 = record.scores["validation"]["accuracy"], record.scores["validation"]["f1"]
    assert rows == [
        ["validation", "accuracy", f"{accuracy:.4f}", f"{spread:.4f}"],
        ["validation", "f1 of equivalent", f"{f1[0]:.4f}", f"{f1[1]:.4f}"],
    ]
    assert page.tables[RUNS][1:] == [
        ["0.001", "0", "0.7000", "30", "20", "0.125"],
        ["0.0001", "0", "0.8000", "30", "20", "0.125"],
        ["0.0001", "1", "0.9000", "30", "20", "1.125"],
    ]
    for row in (*page.tables[SCORES], *page.tables[RUNS]):
        assert f"| {' | '.join(row)} |" in card
    for words in ("1,000 parameters", "At learning rate 0.01 the loss", "Eq. 6 from 0.34567 to 0.12345", record.note):
        assert words in page.words
    assert "mlpfusion tune cut OUT --task mrpc --learning-rate 0.001,0.0001 --seeds 0,1 --batch-size 16" in page.words


def test_curves_say_where_they_begin_and_end():
    loss, score = page_of(make_tune_record()).charts()
    assert loss.startswith("Training loss: rate 0.001, seed 0 from 0.7 to 0.0233; ")
    assert loss.endswith("rate 0.0001, seed 1 (kept) from 0.9 to 0.03")
    assert score.startswith("accuracy on holdout: rate 0.001, seed 0 from 0.6 to 0.667; ")


def test_a_curve_goes_through_the_numbers_of_its_run():
    page = page_of(make_tune_record(runs=(make_run(1e-4, 1, 0.8, training_loss=((10, 0.8), (20, 0.4), (40, 0.2))),)))
    lines = [str(attributes["points"]) for tag, attributes in page.tags if tag == "polyline"]
    places = [tuple(map(float, place.split(","))) for place in lines[0].split()]
    assert [x for x, _ in places] == [250, 500, 1000]
    (_, first), (_, second), (_, third) = places  # y falls by 1000 from the highest tick to the lowest
    assert (second - first) / (third - second) == pytest.approx(2, abs=0.01)


def test_a_long_curve_is_averaged_and_numbers_that_are_not_finite_are_left_out():
    losses = tuple((step, float("nan") if step == 7 else 1.0) for step in range(1, 1001))
    page = page_of(make_tune_record(runs=(make_run(1e-4, 1, 0.8, training_loss=losses),)))
    lines = [str(attributes["points"]) for tag, attributes in page.tags if tag == "polyline"]
    assert len(lines[0].split()) == 200
    assert "nan" not in lines[0]
    alone = make_run(1e-4, 1, 0.8, training_loss=((1, float("inf")),), epochs=())
    assert "no finite number" in page_of(make_tune_record(runs=(alone,))).words


def test_tuned_models_of_one_task_stand_side_by_side():
    cut, whole = make_tune_record("cut"), make_tune_record("whole")
    page = page_of(cut, whole, make_tune_record("other", task="rte"))
    header, *rows = page.tables["mrpc side by side: mean over the seeds, +- standard deviation"]
    assert header == [
        "model",
        "accuracy, validation",
        "f1 of equivalent, validation",
        "parameters",
        "bytes",
        "seconds a step",
    ]
    mean, spread = cut.scores["validation"]["accuracy"]
    assert [row[:2] for row in rows] == [[name, f"{mean:.4f} +- {spread:.4f}"] for name in ("cut", "whole")]
    assert [row[3:] for row in rows] == [["1,000", "4,000", "0.125"]] * 2
    assert f"accuracy, validation: cut {mean:.4f} +- {spread:.4f}; whole" in page.charts()[0]


def test_the_numbers_of_a_distillation_are_those_of_its_record():
    page = page_of(make_distill_record())
    assert page.tables["Loss"] == [["", "before", "after"], ["loss on 32 held-out texts", "0.34567", "0.12345"]]
    assert "learning rate 0.0002, 1 epoch, seed 5; 2,000 parameters, 8,000 bytes" in page.words
    assert "mlpfusion distill whole cut OUT --data texts.txt" in page.words


def test_records_of_training_are_read_from_their_folders(tmp_path):
    tuned = saved(tmp_path / "tuned", TUNE_RECORD_FILE, make_tune_record().to_json())
    distilled = saved(tmp_path / "distilled", DISTILL_RECORD_FILE, make_distill_record().to_json())
    for folders in ([tuned, distilled], [tuned, distilled, tuned]):
        assert call("report", *folders, "--out", tmp_path / "a.html", "--overwrite").exit_code == 0
        expected = report([make_tune_record(), make_distill_record()])
        assert (tmp_path / "a.html").read_text() == expected
    one = call("report", tuned / TUNE_RECORD_FILE, "--out", tmp_path / "b.html")
    assert one.exit_code == 0
    assert (tmp_path / "b.html").read_text() == report([make_tune_record()])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runs": ()}, "must have at least one entry in `runs`, got none"),
        ({"recipe": {"model": "cut", "epochs": 3}}, "must have the entry `batch_size`, which is missing"),
        ({"versions": {}}, "must name the version of mlpfusion in `versions`, got {}"),
        ({"scores": {"validation": {"accuracy": (1.0,)}}}, "a list of 2 for `scores[validation][accuracy]`, got [1.0]"),
    ],
    ids=str,
)
def test_a_broken_record_of_a_tuning_is_refused_by_its_name(changed, message, tmp_path):
    folder = saved(tmp_path / "tuned", TUNE_RECORD_FILE, make_tune_record(**changed).to_json())
    line = refused("report", folder, "--out", tmp_path / "a.html")
    assert message in line
    assert TUNE_RECORD_FILE in line
