"""`benchmarks/inference.py`: what is timed is what the row says."""

import json
import sys
from typing import Any

import pytest
import torch
from pico import pico_model
from scripts import load_script
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def inference() -> Any:
    return load_script("benchmarks/inference.py")


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # now `cache`
def test_every_repetition_writes_the_same_tokens_after_the_prompt(inference, monkeypatch):
    monkeypatch.setattr(inference, "tokens", lambda batch, length: torch.full((batch, length), 5))
    model, seen = pico_model("llama", AutoModelForCausalLM), []

    def run(input_ids, past_key_values, use_cache):
        seen.append((tuple(input_ids.shape), past_key_values.get_seq_length()))
        return model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    once = inference.writing(model, run, 2)
    assert once() > 0
    first, _ = list(seen), seen.clear()
    assert once() > 0
    assert seen == first
    assert first == [((2, 1), inference.PROMPT + place) for place in range(inference.NEW)]


def test_models_take_turns_and_the_first_two_turns_do_not_count(inference, monkeypatch, tmp_path):
    called = []

    def measure(row, folder):
        def once():
            called.append(folder.name)
            return float(len(called))

        return once

    monkeypatch.setattr(inference, "measure", measure)
    row = inference.Row("MiniLM", "torch", "reading", 1)
    seconds = inference.timed(row, tmp_path, 2)
    forms = [f"MiniLM-{form}" for form in inference.KEPT]
    assert called == forms * 4
    assert seconds["full"] == [9.0, 13.0]
    assert seconds["25 %"] == [12.0, 16.0]


def test_a_record_is_completed_row_by_row_and_what_it_has_is_kept(inference, monkeypatch, tmp_path):
    asked, out = [], tmp_path / "inference.json"

    def answer(words):
        asked.append(words[0])
        return {form: [2.0] for form in inference.KEPT} if words[0] == "--time" else 7

    monkeypatch.setattr(inference, "run_itself", answer)
    monkeypatch.setattr(inference, "write_forms", lambda *given: None)
    monkeypatch.setattr(inference.torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(sys, "argv", ["inference.py", "model", "--out", str(out), "--quick"])
    inference.main()
    rows = json.loads(out.read_text())["rows"]
    singles = [row for row in inference.ROWS if row.batch == 1]
    assert [(row["model"], row["engine"], row["phase"]) for row in rows] == [
        (row.model, row.engine, row.phase) for row in singles
    ]
    assert rows[0]["forms"]["25 %"] == {"seconds": 2.0, "over_full": 1.0, "bytes": 0, "peak_bytes": 7}
    assert asked == ["--time", *["--peak"] * 4] * len(singles)
    inference.main()
    assert len(asked) == 5 * len(singles)
