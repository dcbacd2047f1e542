"""The part of the report on a grid: the numbers of a real record, and what is refused."""

import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import call, refused
from html_page import Page, assert_asks_for_nothing

from mlpfusion.report.grid.recovery import recovery_tables
from mlpfusion.report.grid.tables import experiment_markdown
from mlpfusion.report.html.page import report

FILE = Path(__file__).parents[2] / "benchmarks" / "results" / "minilm" / "minilm-table2.json"
RECORD = json.loads(FILE.read_text(encoding="utf-8"))
SCORES = "Scores, percent: mean and sample standard deviation over the seeds"


def page_of(record: dict[str, Any]) -> Page:
    source = report([record])
    assert_asks_for_nothing(source)
    return Page(source)


def scores_of(record: dict[str, Any], label: str, task: str) -> list[float]:
    rows = [row for row in record["rows"] if (row["label"], row["task"]) == (label, task)]
    metric = {"sst2": "accuracy", "mrpc": "accuracy"}[task]
    return [100 * row["run"]["scores"]["validation"][metric] for row in rows]


def test_the_numbers_of_a_grid_are_those_of_its_record():
    page, markdown = page_of(RECORD), experiment_markdown(RECORD)
    for caption in (SCORES, "Share of the full model's score with the same seed, percent", "Cost"):
        for row in page.tables[caption]:
            assert f"| {' | '.join(row)} |" in markdown
    header, *rows = page.tables[SCORES]
    assert header == ["method", "sst2", "mrpc"]
    assert [label for label, *_ in rows] == list(dict.fromkeys(row["label"] for row in RECORD["rows"]))
    for label, *cells in rows:
        for task, cell in zip(("sst2", "mrpc"), cells, strict=True):
            scores = scores_of(RECORD, label, task)
            assert cell == f"{statistics.mean(scores):.2f} +- {statistics.stdev(scores):.2f}"
    first, second, *losses = page.charts()
    assert "; fusion 84.06 +- 1.13; fusion + LoRA 80.73 +- 0.53; " in first
    assert second.startswith("mrpc: full 78.10 +- 1.74; ")
    assert [title.partition(":")[0] for title in losses] == ["Training loss, sst2", "Training loss, mrpc"]
    assert "mlpfusion reproduce minilm-table2 --model model --out DIR" in page.words


def test_dots_stand_in_the_order_of_their_scores():
    page = page_of(RECORD)
    dots = [float(str(tag["cx"]).removesuffix("%")) for _, tag in page.tags if str(tag.get("class")).startswith("dot")]
    labels = list(dict.fromkeys(row["label"] for row in RECORD["rows"]))
    means = [statistics.mean(scores_of(RECORD, label, "sst2")) for label in labels]
    slope = (dots[1] - dots[0]) / (means[1] - means[0])
    assert dots[: len(labels)] == pytest.approx([dots[0] + slope * (mean - means[0]) for mean in means], abs=0.1)
    assert all(0 <= dot <= 100 for dot in dots)


def test_every_chart_of_every_recorded_grid_is_drawn(tmp_path):
    """Also scores of correlation, several ratios, second stages."""
    result = call("report", FILE.parent, "--out", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert "shows 5 records" in result.output
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert_asks_for_nothing(page.source)
    for name in ("minilm-table2", "minilm-table5", "minilm-table6", "minilm-dsee", "minilm-dsee-narrow"):
        for line in (FILE.parent / f"{name}.md").read_text(encoding="utf-8").splitlines():
            if line.startswith("| ") and "---" not in line:
                assert line[2:-2].split(" | ") in [row for rows in page.tables.values() for row in rows]


def test_a_record_of_another_command_is_refused(tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"model": "small", "rows": []}))
    line = refused("report", other, "--out", tmp_path / "a.html")
    assert f"{other} must be a record of compress, tune, distill, export, compare, dynamics, evaluate" in line


def test_a_grid_whose_runs_diverged_says_so():
    record = copy.deepcopy(RECORD)
    failed = [row for row in record["rows"] if (row["label"], row["task"]) == ("full", "sst2")]
    for row in failed:
        del row["run"]
        row["diverged"] = "the loss became NaN"
    page = page_of(record)
    assert page.words.count("Diverged: full, sst2, seed ") == 3
    assert page.tables[SCORES][1] == ["full", "-", "78.10 +- 1.74"]
    assert page_of(record | {"rows": failed}).tables[SCORES][1:] == [["full", "-", "-"]]


def with_stages() -> dict[str, Any]:
    """The record with `fusion` as rows of two stages, at a cost half that of the full model."""
    record = copy.deepcopy(RECORD)
    for row in record["rows"]:
        half = 1 + (row["label"] == "full")
        row["cost"] = {"tokens": 128, "flops": 50_000 * half, "flops_without_zeros": 40_000 * half}
        row["cost"] |= {"parameters": 1000, "nonzero_parameters": 900, "bytes": 2_000_000 * half}
        if row["label"] == "fusion":
            row["first"] = {"validation": {"accuracy": 0.75}}
            row["run"]["before"] = {"validation": {"accuracy": 0.5}}
            row["run"]["trained_parameters"] = 1234
        elif row["label"] == "svd":
            del row["cost"]  # made by a former version
    return record


def test_runs_of_two_stages_have_a_table_of_cost_and_steps():
    record = with_stages()
    page, markdown = page_of(record), experiment_markdown(record)
    (caption,) = (caption for caption in page.tables if caption.startswith("Two stages: FLOPs, percent of the full"))
    header, *rows = page.tables[caption]
    assert header == ["method", "trained", "FLOPs", "without zeros", "MB", "sst2", "mrpc"]
    assert all(f"| {' | '.join(row)} |" in markdown for row in rows)
    found = {label: cells for label, *cells in rows}
    sst2, mrpc = (statistics.mean(scores_of(record, "fusion", task)) for task in ("sst2", "mrpc"))
    steps = [f"75.00 -> 50.00 -> {after:.2f}" for after in (sst2, mrpc)]
    assert found["fusion"] == ["1,234", "50.0", "40.0", "2.0", *steps]
    assert found["full"][1:4] == ["100.0", "80.0", "4.0"]
    assert found["svd"][1:4] == ["-", "-", "-"]
    assert "->" not in found["full"][4]
    assert ["fusion", "1,000", "900"] in [row[:3] for row in page.tables["Cost"]]
    assert "Two stages" not in experiment_markdown(RECORD)


def with_recovery() -> dict[str, Any]:
    """The record with scores at three steps: the full model ends at 80 %, `fusion` is there last, `sketch` never."""
    record = copy.deepcopy(RECORD) | {"eval_steps": 10}
    ends = {"full": (0.6, 0.79, 0.8), "fusion": (0.5, 0.7, 0.7925), "sketch": (0.5, 0.6, 0.79)}
    for row in record["rows"]:
        scores = ends.get(row["label"], (0.5, 0.5, 0.5))
        row["run"]["epochs"] = [
            {"epoch": step / 10, "step": step, "loss": 1.0, "scores": {"accuracy": score + 0.01 * (row["seed"] - 1)}}
            for step, score in zip((10, 20, 30), scores, strict=True)
        ]
    return record


def test_runs_scored_while_training_have_tables_and_curves_of_recovery():
    record = with_recovery()
    page, markdown = page_of(record), experiment_markdown(record)
    caption = "Recovery, sst2: score, percent after steps, mean and sample standard deviation over the seeds"
    header, *rows = page.tables[caption]
    assert header == ["method", "10", "30", "first at 79.2"]  # a half of three steps is one
    found = {label: cells for label, *cells in rows}
    assert found["full"] == ["60.00 +- 1.00", "80.00 +- 1.00", "30"]
    assert found["fusion"] == ["50.00 +- 1.00", "79.25 +- 1.00", "30"]
    assert found["sketch"][-1] == "never"
    assert all(f"| {' | '.join(row)} |" in markdown for row in rows)
    titles = [title.partition(":")[0] for title in page.charts()]
    assert titles[2:4] == ["Scores while training, sst2", "Scores while training, mrpc"]
    assert "Recovery" not in experiment_markdown(RECORD)


def test_recovery_of_a_score_that_is_better_lower_is_near_from_above():
    rows = with_recovery()["rows"][:1]
    rows[0] |= {"task": "wikitext2", "seed": 1, "label": "full"}
    rows[0]["run"] |= {"scores": {"test": {"perplexity": 20.0}}}
    rows[0]["run"]["epochs"] = [{"step": step, "scores": {"perplexity": 30.0 - step}} for step in (5, 9, 10)]
    record = RECORD | {"eval_steps": 5, "tasks": ["wikitext2"], "rows": rows}
    (table,) = recovery_tables(record)
    assert table.header[-1] == "first at 20.2"
    assert table.rows[0][-1] == "10"  # 21 at step 9 is not near enough


def test_flops_are_absolute_without_a_full_model_and_ratios_are_named():
    record = with_stages()
    record["rows"] = [row for row in record["rows"] if row["label"] == "fusion"]
    twice = [row | {"keep_ratio": 0.5, "seed": row["seed"]} for row in copy.deepcopy(record["rows"])]
    record |= {"rows": record["rows"] + twice, "keep_ratio": [0.25, 0.5]}
    (caption,) = (caption for caption in page_of(record).tables if caption.startswith("Two stages: FLOPs, billions"))
    rows = page_of(record).tables[caption][1:]
    assert [row[0] for row in rows] == ["fusion at 25 %", "fusion at 50 %"]


def test_a_full_model_with_the_score_0_has_no_share():
    """As Matthews' correlation is 0 for a model that answers the same to all."""
    record = copy.deepcopy(RECORD)
    for row in record["rows"]:
        if (row["label"], row["task"], row["seed"]) == ("full", "sst2", 0):
            row["run"]["scores"]["validation"]["accuracy"] = 0.0
    rows = page_of(record).tables["Share of the full model's score with the same seed, percent"]
    scores = [scores_of(record, label, "sst2")[1:] for label in ("svd", "full")]
    shares = [100 * own / full for own, full in zip(*scores, strict=True)]
    assert f"{statistics.mean(shares):.2f} +- {statistics.stdev(shares):.2f}" in dict(row[:2] for row in rows)["svd"]


def test_hostile_names_of_a_grid_are_shown_as_text():
    name = "</svg><script>alert(1)</script>\x1b[31m\n[x](y)"
    record = copy.deepcopy(RECORD) | {"title": name, "description": name, "model": name, "name": name}
    for row in record["rows"]:
        row["label"] = name if row["label"] == "fusion" else row["label"]
        row["versions"] = {"mlpfusion": name}
    page = page_of(record)
    assert "\x1b" not in page.source
    assert [row[0] for row in page.tables[SCORES]].count(name.replace("\x1b", "\\x1b")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(rows=[]), "must have at least one entry in `rows`, got none"),
        (lambda record: record.pop("layers"), "must have the entry `layers`, which is missing"),
        (lambda record: record.update(select_on="luck"), "holdout, validation or last for `select_on`, got 'luck'"),
        (lambda record: record["rows"][4].update(task="sst3"), "one of its tasks in every row, got 'sst3'"),
        (lambda record: record.update(tasks=["sst2", "sst3"]), "must have tasks of this version, got 'sst3'"),
        (
            lambda record: record["rows"][4]["run"].update(scores={"validation": {"accuracy": float("nan")}}),
            "must have the accuracy of every run on validation, one has none",
        ),
        (lambda record: record["rows"][4].pop("run"), "must have the entry `run` or `diverged` in every row"),
        (lambda record: record["rows"][4].pop("parameters"), "must have the parameters of every run, one has none"),
        (
            lambda record: record["rows"][4]["run"].update(scores={}),
            "must have the accuracy of every run on validation",
        ),
        (
            lambda record: record["rows"][4]["run"].update(training_loss=[[1]]),
            "a list of 2 for `rows[4].run.training_loss[0]`",
        ),
    ],
    ids=range(10),
)
def test_a_broken_record_of_a_grid_is_refused_by_its_name(change, message, tmp_path):
    refused_for(copy.deepcopy(RECORD), change, message, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["run"].pop("before"), "must have the scores of both stages on every split, 'fusion' has not"),
        (lambda row: row.update(first={}), "must have the scores of both stages on every split, 'fusion' has not"),
        (lambda row: row.pop("cost"), "must have the cost of a run of two stages, 'fusion' has none"),
        (lambda row: row["cost"].update(bytes="few"), ".cost.bytes`, got 'few'"),
        (lambda row: row["run"].pop("trained_parameters"), "must have the trained parameters of every run, one has"),
    ],
    ids=range(5),
)
def test_a_broken_run_of_two_stages_is_refused_by_the_name_of_its_record(change, message, tmp_path):
    def of_first(record: dict[str, Any]) -> None:
        change(next(row for row in record["rows"] if row["label"] == "fusion"))

    refused_for(with_stages(), of_first, message, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(epochs=[]), "must have at least one entry in `epochs`, got none"),
        (lambda run: run["epochs"][1].update(scores={}), "must have the accuracy at every step that was scored, one"),
        (lambda run: run["epochs"][1].update(step="two"), ".epochs[1].step`, got 'two'"),
    ],
    ids=range(3),
)
def test_a_broken_curve_is_refused_by_the_name_of_its_record(change, message, tmp_path):
    refused_for(with_recovery(), lambda record: change(record["rows"][0]["run"]), message, tmp_path)


def refused_for(
    record: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    change(record)
    (tmp_path / "runs").mkdir()
    (tmp_path / "small.json").write_text(json.dumps(record))
    line = refused("report", tmp_path, "--out", tmp_path / "a.html")
    assert message in line
    assert f"{tmp_path}/small.json" in line
    assert not (tmp_path / "a.html").exists()
