"""What the documents say of recovery at base size, made of a record."""

from typing import Any

from scripts import load_script

STEPS = (12, 24)
# Points below the full model, the same at every step; by seed.
BEHIND = {
    "clustering": (1.0, 1.1, 0.9),
    "folded-fusion": (0.5, 0.1, 0.3),
    "fusion": (0.2, 0.1, 0.3),
    "ntk-match": (0.0,) * 3,
}


def row(label: str, seed: int, points: float) -> dict[str, Any]:
    scores = [{"step": step, "scores": {"accuracy": (80 + step / 10 - points) / 100}} for step in STEPS]
    run = {"epochs": scores, "scores": {"validation": scores[-1]["scores"]}}
    own = {"label": label, "seed": seed, "method": None if label == "full" else label}
    return own | {"run": run, "task": "sst2", "chosen": True, "layers": "all", "keep_ratio": 0.25}


def record() -> dict[str, Any]:
    rows = [row(label, seed, lost[seed]) for label, lost in {"full": (0.0,) * 3, **BEHIND}.items() for seed in range(3)]
    experiment = {"tasks": ["sst2"], "seeds": [0, 1, 2], "layers": ["all"], "keep_ratio": [0.25], "eval_steps": 12}
    return experiment | {"rows": rows}


def test_differences_are_paired_and_judged_with_their_errors():
    share, *pairs = load_script("docs/tables.py").base_size_claims(record()).splitlines()
    assert share == (
        "- fusion, sst2: 99.8 % of the full model's score, standard error 0.1 over 3 seeds. "
        "That it keeps 98.5 %, the paper's claim, holds."
    )
    assert "sst2, mean over the steps: +0.80 points, standard error 0.12 over 3 seeds: more." in pairs[0]
    assert "+0.10 points, standard error 0.10 over 3 seeds: not decided; about 12 seeds would tell." in pairs[1]
    assert "+0.20 points, standard error 0.06 over 3 seeds: more." in pairs[2]


def test_the_table_says_when_the_full_model_is_nearly_reached():
    lines = load_script("docs/tables.py").base_size_tables(record()).splitlines()
    assert lines[0].startswith("Recovery, sst2: ")
    assert next(line for line in lines if line.startswith("| full |")).endswith("| 24 |")
