"""Tiny models derived from the default config of a type, cut, saved and loaded."""

from dataclasses import asdict
from typing import Any

import pytest
from scripts import load_script


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("benchmarks/round_trips.py")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", {"status": "done", "calibrated": True, "folded": True, "other_stacks": None}),
        ("bloom", {"status": "done", "folded": None}),
        ("llava", {"status": "done", "calibrated": True, "other_stacks": True}),
        ("bitnet", {"status": "refused"}),  # a norm inside the MLP
        ("hrm_text", {"status": "unbuilt"}),
    ],
)
def test_each_outcome_has_a_type(script, name, expected):
    found = asdict(script.round_trip(name))
    assert {key: found[key] for key in expected} == expected
    assert (found["reason"] is None) == (expected["status"] == "done")


def test_sizes_layers_and_ids_shrink_together(script):
    whole = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 30000}
    whole |= {"layer_types": ["full", "full", "mamba"] * 4, "image_size": 224, "eos_token_id": 29999, "depths": [1, 9]}
    small = script._shrunk(whole, 12, 2)
    assert (small["hidden_size"], small["num_attention_heads"], small["num_hidden_layers"]) == (64, 1, 2)
    assert small["layer_types"] == ["full", "mamba"]
    assert (small["image_size"], small["vocab_size"], small["eos_token_id"]) == (224, 512, 511)
    assert small["depths"] == [1, 9]
