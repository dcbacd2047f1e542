"""Records of training, made up: quick to have, and every number another."""

from typing import Any

from mlpfusion.record import Size
from mlpfusion.tune.record import DistillRecord, DistillRun, EpochRecord, RunRecord, TuneRecord, summarise

VERSIONS = {"python": "3.11", "mlpfusion": "0.1.0", "torch": "2.13"}


def make_run(rate: float, seed: int, score: float, **changed: Any) -> RunRecord:
    values: dict[str, Any] = {
        "learning_rate": rate,
        "seed": seed,
        "selected_on": "holdout",
        "selection_metric": "accuracy",
        "selection_score": score,
        "best_step": 20,
        "steps": 30,
        "train_samples": 90,
        "epochs": tuple(
            EpochRecord(epoch, 10 * epoch, 1 / epoch, {"accuracy": score - 0.1 / epoch}) for epoch in (1, 2, 3)
        ),
        "training_loss": tuple((step, score / step) for step in range(1, 31)),
        "scores": {"validation": {"accuracy": score / 2, "f1": score / 3}},
        "trained_parameters": 1234,
        "seconds": 12.5,
        "seconds_per_step": 0.125 + seed,
        "peak_bytes": 1000,
    }
    return RunRecord(**values | changed)


def make_tune_record(model: str = "cut", **changed: Any) -> TuneRecord:
    runs = (make_run(1e-3, 0, 0.7), make_run(1e-4, 0, 0.8), make_run(1e-4, 1, 0.9))
    values: dict[str, Any] = {
        "recipe": {
            "model": model,
            "task": "mrpc",
            "learning_rate": [1e-3, 1e-4],
            "seeds": [0, 1],
            "epochs": 3,
            "batch_size": 16,
            "max_length": 128,
        },
        "task": "mrpc",
        "data": "mrpc/train.jsonl",
        "note": "epoch and rate were chosen on 10 % of train",
        "model_sha256": "0" * 64,
        "device": "cpu",
        "versions": VERSIONS,
        "size": Size(1000, 4000),
        "learning_rate": 1e-4,
        "saved_seed": 1,
        "scores": summarise([run.scores for run in runs[1:]]),
        "diverged": (1e-2,),
        "layerwise": make_distill_run(),
        "runs": runs,
        "f1_class": "equivalent",
    }
    return TuneRecord(**values | changed)


def make_distill_run() -> DistillRun:
    losses = tuple((step, 2 / step) for step in range(1, 11))
    return DistillRun("layerwise", 5, 10, 320, 32, 0.34567, 0.12345, losses, 3.5, 0.25, 1000)


def make_distill_record() -> DistillRecord:
    recipe = {"original": "whole", "compressed": "cut", "learning_rate": 2e-4, "epochs": 1}
    return DistillRecord(recipe, "texts.txt", "1" * 64, "2" * 64, "cpu", VERSIONS, Size(2000, 8000), make_distill_run())
