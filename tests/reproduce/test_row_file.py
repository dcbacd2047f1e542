"""`dynamics` and `reproduce` on a model type that has no row of its own, with and without a row file."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import call
from detected import detected_model
from tiny_task import tiny_tokenizer, write_files

METHODS = "full,fusion,svd,ntk-match:refine_epochs=1+layerwise,lth:rounds=1"


@pytest.fixture
def unknown(tmp_path) -> tuple[Path, Path]:
    """A checkpoint of such a type, and the row that `inspect` proposes."""
    folder, row = tmp_path / "unknown", tmp_path / "row.yaml"
    detected_model("camembert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    row.write_text(json.loads(call("inspect", folder, "--json").stdout)["proposed_row"])
    return folder, row


def sizes(record: dict[str, Any]) -> dict[str, int]:
    return {row["label"]: row["parameters"] for row in record["rows"]}


@pytest.mark.slow
def test_reproduce_runs_a_grid_and_a_row_file_that_says_the_same_changes_nothing(unknown, recipe, tmp_path):
    model, row = unknown
    command = ["reproduce", recipe(epochs=1), "--model", model, "--out", tmp_path / "out", "--methods", METHODS]
    result = call(*command, "--seeds", 0, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert len(sizes(record)) == 5
    assert sizes(record)["full"] == sizes(record)["lth rounds=1"] > sizes(record)["fusion"]
    again = call(*command, "--seeds", 0, "--architecture", row, "--json")  # nothing is run again
    assert json.loads(again.stdout)["rows"] == record["rows"]


def test_dynamics_runs(unknown, tmp_path):
    model, _ = unknown
    train, validation = write_files(tmp_path)
    command: list[object] = ["dynamics", model, "--train", train, "--validation", validation, "--out", tmp_path / "out"]
    command += ["--text-column", "sentence", "--label-column", "label", "--max-length", 16, "--device", "cpu"]
    command += ["--steps", 2, "--batch-size", 8, "--seeds", 0, "--eval-samples", 10, "--calibration-samples", 8]
    command += ["--methods", "fusion,svd,ntk-match:refine_epochs=1"]
    result = call(*command, "--json")
    assert result.exit_code == 0, result.output
    found = sizes(json.loads(result.stdout))
    assert len(found) == 4
    assert found["full"] > found["fusion"]
