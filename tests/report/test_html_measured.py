"""The parts of the report on comparisons, dynamics, evaluations and exports: the numbers of their records."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from command import call, refused
from html_page import Page, assert_asks_for_nothing

from mlpfusion.data.files.text import texts_sha256
from mlpfusion.export.run import EXPORT_RECORD_FILE, ExportRecord
from mlpfusion.measure.evaluation.harness import HarnessEvaluation
from mlpfusion.measure.evaluation.task import TaskEvaluation
from mlpfusion.measure.evaluation.text import Evaluation, TextSource
from mlpfusion.measure.language import LanguageLoss
from mlpfusion.record import Origin, versions
from mlpfusion.report.comparison import comparison_markdown
from mlpfusion.report.dynamics import dynamics_markdown

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMPARISON, DYNAMICS = RESULTS / "minilm_comparison.json", RESULTS / "dynamics.json"
BAD = "<script>document.title = 'run'</script>"


def origin(name: str = "small") -> Origin:
    return Origin(name, False, None, None)


def export_of(**entries: Any) -> ExportRecord:
    usual = ExportRecord("gguf", "llama.cpp", "q8_0", origin(), "0" * 64, 32, 26_718, 1_024, 107_000, 1.5,
                         "its outputs differ by 2e-03", 2e-3, versions())  # fmt: skip
    return ExportRecord(**{**vars(usual), **entries})


def task_evaluation(**entries: Any) -> TaskEvaluation:
    scores = {"validation": {"accuracy": 0.8125, "f1": 0.75}, "test": {"accuracy": 0.79}}
    usual = TaskEvaluation(origin(), "sst2", "GLUE", scores, None, None, {"test": 3}, 26_718, "cpu", 1, versions())
    return TaskEvaluation(**{**vars(usual), **entries})


def harness_evaluation(results: Any) -> HarnessEvaluation:
    told = versions() | {"lm_eval": "0.4.13"}
    return HarnessEvaluation(origin(), ("a", "b"), {"results": results}, 9, "float32", "cpu", 1, 2.0, told)


def text_evaluation() -> Evaluation:
    text, result = TextSource("texts.txt", None, 128, None, None), LanguageLoss(1.5, 4.4817, 4.1, 4.9, 1_000, 8)
    return Evaluation(origin(), text, texts_sha256(["a"]), result, 26_718, "float32", "cpu", 1, 0, 3.25, versions())


def saved(folder: Path, name: str, data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder


def page_of(tmp_path: Path, *places: Path) -> Page:
    out = tmp_path / "report.html"
    done = call("report", *places, "--out", out, "--overwrite")
    assert done.exit_code == 0, done.output
    source = out.read_text(encoding="utf-8")
    assert_asks_for_nothing(source)
    return Page(source)


def test_the_numbers_of_a_comparison_are_those_of_its_record(tmp_path):
    record = json.loads(COMPARISON.read_text())
    page, markdown = page_of(tmp_path, COMPARISON), comparison_markdown(record)
    tables = {caption: rows for caption, rows in page.tables.items() if caption != "Versions"}
    assert len(tables) == markdown.count("## ")
    for caption, rows in tables.items():
        part = markdown.partition(f"## {caption}\n")[2].partition("\n## ")[0]
        assert rows
        assert all(f"| {' | '.join(row)} |" in part for row in rows)
    chart = page.charts()[0]
    labels = dict.fromkeys(row["label"] for row in record["rows"])
    for label in labels:
        mean = statistics.mean(row["error"]["output_error"] for row in record["rows"] if row["label"] == label)
        assert f"{label} {mean:.3f}" in chart.partition(": ")[2].split("; ")


def test_the_numbers_of_training_dynamics_are_those_of_its_record(tmp_path):
    record = json.loads(DYNAMICS.read_text())
    page, markdown = page_of(tmp_path, DYNAMICS), dynamics_markdown(record)
    tables = {caption: rows for caption, rows in page.tables.items() if caption != "Versions"}
    assert len(tables) == 3
    for caption, rows in tables.items():
        part = markdown.partition(f"## {caption}\n")[2].partition("\n## ")[0]
        assert all(f"| {' | '.join(row)} |" in part for row in rows)
    distance, loss = page.charts()
    early = [index for index, step in enumerate(record["measured_at"]) if step <= 10]
    seeds = [row["distance"] for row in record["rows"] if row["label"] == "fusion"]
    mean = statistics.mean(statistics.mean(seed[index] for index in early) for seed in seeds)
    assert f"fusion {mean:.3f} on average up to step 10" in distance
    last = [statistics.mean(row["training_loss"][-10:]) for row in record["rows"] if row["label"] == "full"]
    assert f"full ends at {statistics.mean(last):.3g}" in loss
    assert "ntk-match (nearest up to step 10)" in page.words


def test_the_numbers_of_an_export_are_those_of_its_record(tmp_path):
    page = page_of(tmp_path, saved(tmp_path / "out", EXPORT_RECORD_FILE, asdict(export_of())))
    for words in (
        "small, exported to gguf",
        "26,718 parameters, 107,000 bytes, weights in q8_0. Written in 1.5 s.",
        "Run by llama.cpp without this package, its outputs differ by 2e-03.",
        "are 1,024 of its parameters (3.8 %)",
        "mlpfusion export small OUT --to gguf --pad-to 32 --dtype q8_0",
    ):
        assert words in page.words


def test_the_scores_on_a_task_are_those_of_the_record(tmp_path):
    page = page_of(tmp_path, saved(tmp_path / "out", "evaluation.json", asdict(task_evaluation())))
    assert page.tables["Scores on sst2"][1:] == [
        ["validation", "accuracy", "0.8125"],
        ["validation", "f1", "0.7500"],
        ["test", "accuracy", "0.7900"],
    ]
    assert "ended: 3 of test." in page.words
    assert "mlpfusion evaluate small --task sst2" in page.words


def test_the_scores_of_lm_eval_and_a_perplexity_are_those_of_their_records(tmp_path):
    results = {"a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.0125}, "b": {"exact,strict": 1, "n": "N/A"}}
    page = page_of(tmp_path, saved(tmp_path / "out", "evaluation.json", asdict(harness_evaluation(results))))
    assert page.tables["Scores of lm-eval"][1:] == [
        ["a", "acc", "none", "0.5000", "0.0125"],
        ["b", "exact", "strict", "1.0000", "-"],
    ]
    assert "mlpfusion evaluate small --lm-eval a,b" in page.words
    page = page_of(tmp_path, saved(tmp_path / "text", "evaluation.json", asdict(text_evaluation())))
    assert "perplexity 4.482 (95 % interval 4.1 to 4.9), loss 1.5000 nats a token" in page.words
    assert "mlpfusion evaluate small --data texts.txt --window 128" in page.words


def test_names_are_text(tmp_path):
    compared = json.loads(COMPARISON.read_text())
    for row in compared["rows"]:
        row["label"] = f"{row['label']} {BAD}"
    trained = json.loads(DYNAMICS.read_text()) | {"task": BAD}
    scored = harness_evaluation({BAD: {f"{BAD},x": 0.5}})
    places = [
        saved(tmp_path / "a", "comparison.json", compared | {"model": BAD}),
        saved(tmp_path / "b", "dynamics.json", trained),
        saved(tmp_path / "c", "evaluation.json", asdict(scored)),
        saved(tmp_path / "d", EXPORT_RECORD_FILE, asdict(export_of(model=origin(BAD), engine=BAD))),
        saved(tmp_path / "e", "evaluation.json", asdict(task_evaluation(scores={BAD: {BAD: 0.5}}))),
    ]
    page = page_of(tmp_path, *places)
    assert page.words.count(BAD) > 20
    assert "5 runs of mlpfusion" in page.words


def broken(file: Path, **entries: Any) -> dict[str, Any]:
    return json.loads(file.read_text()) | entries


def test_a_record_that_is_not_whole_is_refused(tmp_path):
    rows = json.loads(COMPARISON.read_text())["rows"]
    gap = [row for row in rows if (row["label"], row["error"]["layer"]) != (rows[0]["label"], 0)]
    runs = json.loads(DYNAMICS.read_text())["rows"]
    short = [row | {"distance": row["distance"][:2]} for row in runs]
    losses = [*runs[:-1], runs[-1] | {"training_loss": [0.5]}]
    other = rows[0] | {"error": rows[0]["error"] | {"authors": {"output": 1.0, "kernel": 1.0}}}
    cases = [
        ("comparison.json", broken(COMPARISON, rows=[]), "at least one entry in `rows`"),
        ("comparison.json", broken(COMPARISON, rows=gap), "every method at every block"),
        ("comparison.json", broken(COMPARISON, rows=[*rows[1:], other]), "the same numbers in every row"),
        ("comparison.json", broken(COMPARISON, versions={}), "the version of mlpfusion"),
        ("comparison.json", broken(COMPARISON, samples="many"), "samples"),
        ("dynamics.json", broken(DYNAMICS, rows=[row for row in runs if row["label"] != "full"]), "the full model and"),
        ("dynamics.json", broken(DYNAMICS, rows=short), "a number for every step"),
        ("dynamics.json", broken(DYNAMICS, rows=losses), "equally many losses"),
        ("dynamics.json", broken(DYNAMICS, measured_at=[25, 50]), "a step between 1 and 10"),
        ("evaluation.json", asdict(task_evaluation(scores={})), "at least one entry in `scores`"),
        ("evaluation.json", asdict(harness_evaluation(3)), "results"),
        ("evaluation.json", asdict(task_evaluation()) | {"more": 1}, "more"),
        (EXPORT_RECORD_FILE, asdict(export_of(to="word")), "a form among hf, onnx"),
        (EXPORT_RECORD_FILE, asdict(export_of(parameters=0)), "parameters of at least 1"),
        ("other.json", {"rows": []}, "must be a record of compress, tune, distill, export, compare"),
    ]
    for number, (name, data, words) in enumerate(cases):
        place = saved(tmp_path / str(number), name, data)
        line = refused("report", place / name, "--out", tmp_path / "report.html")
        assert words in line, (name, line)
        assert not (tmp_path / "report.html").exists()
