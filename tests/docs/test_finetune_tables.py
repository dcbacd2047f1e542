"""The table of fine-tuning beside transformers' Trainer, made of a record."""

from scripts import load_script


def row(loop, seed, training, score):
    return {
        "run": {"model": "a", "task": "sst2", "loop": loop, "seed": seed},
        "tokens": 6000,
        "start_seconds": 4.0,
        "training_seconds": training,
        "evaluation_seconds": 1.0,
        "peak_bytes": 900 * 10**6,
        "scores": {"accuracy": score, "f1": 0.1},
    }


def test_ratios_are_those_of_each_seed_and_count_start_and_evaluation():
    tables = load_script("docs/tables.py")
    stock = [row("Trainer", seed, training, 0.8) for seed, training in enumerate((95.0, 195.0, 45.0))]
    ours = [row("tune, fused", seed, training, 0.8 + seed / 100) for seed, training in enumerate((5.0, 15.0, 20.0))]
    lines = tables.finetune_table({"rows": [*stock, *reversed(ours)]}).splitlines()[2:]
    assert lines == [
        "| a, sst2 | Trainer | 100 | 95 | 63 | 1.0x | - | 900 | 80.0 (80.0 to 80.0) |",
        "| a, sst2 | tune, fused | 20 | 15 | 400 | 10.0x | - | 900 | 81.0 (80.0 to 82.0) |",
    ]
