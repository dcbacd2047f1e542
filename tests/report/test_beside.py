"""What is written for people beside a record: card, chart and page; the metadata that the Hub reads."""

from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from command import call
from html_page import assert_asks_for_nothing
from huggingface_hub.repocard_data import model_index_to_eval_results
from tiny_task import save_checkpoint, write_files
from tuned_records import make_distill_record, make_tune_record

from mlpfusion.record import Origin
from mlpfusion.report.card import distill_card, tune_card
from mlpfusion.report.html.charts import Bar, bar_chart, standalone
from mlpfusion.report.html.element import xml
from mlpfusion.report.html.page import style

CHART, PAGE = "mlp_fusion_chart.svg", "report.html"
HUB = Origin("someone/cut", is_hub_id=True, revision=None, commit="abc")
LOCAL = Origin("cut", is_hub_id=False, revision=None, commit=None)
SOURCE = "---\nlicense: mit\nlanguage: en\nbase_model: someone/whole\ntags: [sentence-similarity]\n---\n# Whole\n"


def test_compress_writes_card_chart_and_page(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    for name, flags in (("a", ()), ("b", ()), ("c", ("--no-report",)), ("d", ("--stream",))):
        assert call("compress", model, tmp_path / name, "--keep-ratio", 0.25, *flags).exit_code == 0
    assert call("report", tmp_path / "a", "--out", tmp_path / "own.html").exit_code == 0
    page, chart = (tmp_path / "a" / PAGE).read_text(), (tmp_path / "a" / CHART).read_text()
    assert page == (tmp_path / "own.html").read_text()
    assert_asks_for_nothing(page)
    for name, text in ((PAGE, page), (CHART, chart)):  # the same seed, the same bytes: no time is in them
        assert [(tmp_path / other / name).read_text() == text for other in ("b", "d")] == [True, True]
    assert not (tmp_path / "c" / PAGE).exists()
    assert (tmp_path / "c" / CHART).read_text() == chart
    assert f"]({CHART})" in (tmp_path / "a" / "README.md").read_text()


def test_the_page_of_a_folder_is_not_carried_to_the_next(tmp_path):
    """It would be that of another model; and a folder that holds one is no strange one."""
    model = save_checkpoint(tmp_path / "model")
    (model / PAGE).write_text("of another model")
    (model / CHART).write_text("of another model")
    result = call("compress", model, tmp_path / "a", "--keep-ratio", 0.25, "--no-report")
    assert result.exit_code == 0
    assert "left out" not in result.stderr
    assert not (tmp_path / "a" / PAGE).exists()
    assert "another" not in (tmp_path / "a" / CHART).read_text()


def test_the_chart_is_a_picture_of_its_own(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    assert call("compress", model, tmp_path / "a", "--keep-ratio", 0.25).exit_code == 0
    root = ElementTree.parse(tmp_path / "a" / CHART).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert str(root.get("aria-label")).startswith("Inertia left: encoder.layer.0 ")
    text = (tmp_path / "a" / CHART).read_text()
    assert "prefers-color-scheme: dark" in text
    assert text.count("http") == 1  # the name of the namespace
    assert call("compress", model, tmp_path / "b", "--keep-ratio", 0.25, "--method", "svd").exit_code == 0
    assert "Parameters left: encoder.layer.0 " in (tmp_path / "b" / CHART).read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")
def test_tune_and_distill_write_card_chart_and_page(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    train, validation = write_files(tmp_path)
    assert call("compress", model, tmp_path / "cut", "--keep-ratio", 0.25).exit_code == 0
    data = ("--train", train, "--validation", validation, "--text-column", "sentence", "--label-column", "label")
    for name, flags in (("tuned", ()), ("without", ("--no-report",))):
        result = call("tune", tmp_path / "cut", tmp_path / name, *data, "--epochs", 1, "--device", "cpu", *flags)
        assert result.exit_code == 0, result.output
    texts = ("--data", train, "--column", "sentence", "--device", "cpu")
    assert call("distill", model, tmp_path / "cut", tmp_path / "taught", *texts).exit_code == 0
    for name in ("tuned", "taught"):
        page = (tmp_path / name / PAGE).read_text()
        assert_asks_for_nothing(page)
        assert "Training loss" in (tmp_path / name / CHART).read_text()
        assert call("report", tmp_path / name, "--out", tmp_path / f"{name}.html").exit_code == 0
        assert "2 runs of mlpfusion" in (tmp_path / f"{name}.html").read_text()  # the compression too
    assert not (tmp_path / "without" / PAGE).exists()
    assert (tmp_path / "without" / CHART).exists()


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_of_a_tuned_model_names_licence_base_and_scores(tmp_path):
    (tmp_path / "README.md").write_text(SOURCE)
    record = make_tune_record()
    card = tune_card(record, tmp_path, HUB)
    data = metadata(card)
    assert (data["license"], data["language"], data["base_model"]) == ("mit", "en", "someone/cut")
    assert data["tags"] == ["mlp-fusion", "text-classification"]
    assert data["metrics"] == ["accuracy", "f1"]
    assert metadata(tune_card(record, tmp_path, LOCAL))["base_model"] == "someone/whole"
    (kept,) = (run for run in record.runs if (run.learning_rate, run.seed) == (1e-4, 1))
    _, results = model_index_to_eval_results(data["model-index"])  # as the Hub's own library reads it
    assert [(one.dataset_type, one.dataset_name, one.dataset_split) for one in results] == [
        ("glue", "mrpc", "validation")
    ] * 2
    assert {one.metric_type: one.metric_value for one in results} == kept.scores["validation"]


def test_a_tuned_model_of_an_unknown_source_claims_no_licence(tmp_path):
    data = metadata(tune_card(make_tune_record(), tmp_path, LOCAL))
    assert not {"license", "base_model"} & data.keys()


def test_the_card_of_a_distilled_model_keeps_what_its_source_says(tmp_path):
    (tmp_path / "README.md").write_text(SOURCE)
    data = metadata(distill_card(make_distill_record(), tmp_path, LOCAL))
    assert (data["license"], data["base_model"]) == ("mit", "someone/whole")
    assert data["tags"] == ["sentence-similarity", "mlp-fusion", "compression", "distillation"]


def test_a_hostile_name_stays_text_in_the_metadata_and_in_the_chart(tmp_path):
    name = "---\nlicense: evil\n---\n</svg><script>alert(1)</script>"
    data = metadata(tune_card(make_tune_record(name), tmp_path, LOCAL))
    assert "license" not in data
    assert data["model-index"][0]["name"].endswith("</svg><script>alert(1)</script>, tuned on mrpc")
    chart = xml(standalone(bar_chart("A chart", [Bar(name, 0.5, name)]), style("chart.css")))
    assert "<script" not in chart
    assert name in ElementTree.fromstring(chart).itertext()
