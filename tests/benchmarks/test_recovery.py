"""`benchmarks/recovery.py`: where a curve crosses, what a start sees, and a record that goes on where it was."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scripts import load_script

from mlpfusion.methods.names import parse_method

ROOT = Path(__file__).parents[2]
STORY = "Once upon a time there was a little girl who loved to play with her red ball in the park.\n<|endoftext|>\n"


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("benchmarks/recovery.py")


def test_a_crossing_lies_between_two_points_of_the_curve(script):
    assert script.steps_to(10.0, [0, 10, 30], [1000.0, 100.0, 1.0]) == pytest.approx(20)
    assert script.steps_to(100.0, [0, 10, 30], [1000.0, 100.0, 1.0]) == pytest.approx(10)
    high, low = math.exp(2), math.exp(1)
    assert script.steps_to(math.exp(1.25), [0, 4], [high, low]) == pytest.approx(3)


def test_a_curve_that_begins_below_or_stays_above_is_not_interpolated(script):
    assert script.steps_to(5.0, [0, 10], [4.0, 8.0]) == 0
    assert script.steps_to(5.0, [0, 10], [8.0, 6.0]) is None
    assert script.steps_to(5.0, [0, 10, 20, 30], [8.0, 4.0, 9.0, 4.0]) == pytest.approx(
        10 * math.log(8 / 5) / math.log(2)
    ), "the first crossing counts"


def test_a_start_knows_its_name_and_whether_it_sees_text(script):
    seen = {name: script.Start(parse_method(name), 0.5) for name in script.STARTS}
    assert [name for name, start in seen.items() if start.sees_text] == [
        name for name in script.STARTS if name.startswith("ntk-match")
    ]
    assert script.Start(None, 1.0).label == "full"
    assert len({start.label for start in seen.values()}) == len(seen)


def test_the_last_step_is_measured_too(script):
    settings = script.Settings("m", "a", "b", 128, 1024, 8192, 60, "cpu")
    assert settings.measured_at == [0, 10, 25, 50, 60]


@pytest.mark.slow
def test_a_run_that_the_record_holds_is_not_repeated(script, evaluation_data, tmp_path, monkeypatch, capsys):
    model, text, out = tmp_path / "model", tmp_path / "text.txt", tmp_path / "record.json"
    converter = load_script("examples/stories260k.py")
    source = evaluation_data / "checkpoints" / "stories260K"
    assert CliRunner().invoke(converter.main, [str(source), str(model)]).exit_code == 0
    text.write_text(STORY * 40)
    words = [model, text, text, "--out", out, "--starts", "neuron-pruning", "--window", 32, "--batch-tokens", 64]
    words += ["--tokens", 64, "--steps"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("recovery.py", *words, 2)])
    script.main()
    written = out.read_bytes()
    record = json.loads(written)
    assert [(row["start"], row["tuning"]) for row in record["rows"]] == [
        (start, tuning) for start in ("full", "neuron-pruning") for tuning in ("full", "lora")
    ]
    for row in record["rows"]:
        assert len(row["perplexity"]) == len(record["measured_at"]) == 2
        assert row["perplexity"][1] < row["perplexity"][0]
        assert (row["trained_parameters"] == row["parameters"]) == (row["tuning"] == "full")
    assert record["rows"][0]["perplexity"][0] == record["rows"][1]["perplexity"][0] == record["perplexity"]
    assert "  step 2: perplexity" in capsys.readouterr().out
    script.main()
    assert out.read_bytes() == written
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", [str(word) for word in ("recovery.py", *words, 3)])
    with pytest.raises(AssertionError, match="was made with"):
        script.main()


def test_a_step_of_no_whole_windows_is_refused(script, monkeypatch, capsys):
    for tokens in ("64", "300"):
        words = ["recovery.py", "model", "train", "test", "--out", "out", "--batch-tokens", tokens]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit):
            script.parsed()
        assert f"--batch-tokens must be a multiple of 128, got {tokens}" in capsys.readouterr().err
