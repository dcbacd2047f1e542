"""Records of training runs: plain data, written as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlpfusion.data.task_kind import SEQUENCE_CLASSIFIER, ModelNames
from mlpfusion.dsee.record import DseeRecord
from mlpfusion.generation.scores import Signatures
from mlpfusion.record import Size
from mlpfusion.storage.typed import typed

TUNE_RECORD_FILE = "mlp_fusion_tune_record.json"
DISTILL_RECORD_FILE = "mlp_fusion_distill_record.json"
Scores = dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """Loss and scores on the selection split after an epoch, or with `eval_steps` on the first reported split.

    The epoch is a fraction if it was not complete.
    """

    epoch: float
    step: int
    loss: float
    scores: Scores


@dataclass(frozen=True)
class GeneratedRecord:
    """How generated texts were scored: signatures of the scores, and by split how many texts reached the limit."""

    signatures: Signatures
    cut: dict[str, int]


@dataclass(frozen=True)
class RunRecord:
    """One run: one learning rate, one seed.

    `selected_on`: split for choosing the best epoch (None: the last epoch was taken), with
    `selection_score` there. `scores`: metrics by reported split. `training_loss`: pairs (step, mean
    loss since the last pair). `seconds_per_step`: median of forward, backward and update; None if
    not measured. `dsee`: what DSEE trained, None without it. `before`: the scores with an adapter as it was
    loaded, before any step; None for a new one and without.
    """

    learning_rate: float
    seed: int
    selected_on: str | None
    selection_metric: str
    selection_score: float | None
    best_step: int
    steps: int
    train_samples: int
    epochs: tuple[EpochRecord, ...]
    training_loss: tuple[tuple[int, float], ...]
    scores: dict[str, Scores]
    trained_parameters: int
    seconds: float
    seconds_per_step: float | None
    peak_bytes: int
    generated: GeneratedRecord | None = None
    dsee: DseeRecord | None = None
    before: dict[str, Scores] | None = None


@dataclass(frozen=True)
class DistillRun:
    """One run of learning from the original.

    `loss_before` and `loss_after` are measured on held-out examples.
    """

    objective: str
    seed: int
    steps: int
    train_samples: int
    held_out_samples: int
    loss_before: float
    loss_after: float
    training_loss: tuple[tuple[int, float], ...]
    seconds: float
    seconds_per_step: float | None
    peak_bytes: int


@dataclass(frozen=True)
class TuneRecord:
    """Record of `mlpfusion tune`: all runs, chosen rate and seed, scores.

    `scores`: split -> metric -> (mean, sample standard deviation) over the seeds at the chosen
    rate. `diverged`: learning rates with a loss of NaN or Inf. `f1_class`: name of the class of the
    F1 score, None without F1. `names`: what others call such a model. `before`: as `scores`, of an adapter
    that trained again, before it did.
    """

    recipe: dict[str, Any]
    task: str
    data: str
    note: str
    model_sha256: str
    device: str
    versions: dict[str, str]
    size: Size
    learning_rate: float
    saved_seed: int
    scores: dict[str, dict[str, tuple[float, float]]]
    diverged: tuple[float, ...]
    layerwise: DistillRun | None
    runs: tuple[RunRecord, ...]
    f1_class: str | None = None
    names: ModelNames = SEQUENCE_CLASSIFIER
    before: dict[str, dict[str, tuple[float, float]]] | None = None

    def metric_name(self, name: str) -> str:
        """Name of a metric for people, as in `f1 of equivalent`."""
        return f"f1 of {self.f1_class}" if name == "f1" and self.f1_class is not None else name

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class DistillRecord:
    """Record of `mlpfusion distill`, with the hashes of both checkpoints."""

    recipe: dict[str, Any]
    data: str
    original_sha256: str
    compressed_sha256: str
    device: str
    versions: dict[str, str]
    size: Size
    run: DistillRun

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def distill_run_from_dict(data: dict[str, Any]) -> DistillRun:
    """Reads a `DistillRun` from its JSON data."""
    return typed(DistillRun, data, "the record of the stage")


def distill_record_from_dict(data: dict[str, Any], where: str = "the record") -> DistillRecord:
    """Reads a `DistillRecord` from its JSON data. Raises `InputError`, which names `where`."""
    return typed(DistillRecord, data, where)


def run_from_dict(data: dict[str, Any]) -> RunRecord:
    """Reads a `RunRecord` from its JSON data."""
    return typed(RunRecord, data, "the record of the run")


def tune_record_from_dict(data: dict[str, Any], where: str = "the record") -> TuneRecord:
    """Reads a `TuneRecord` from its JSON data. Raises `InputError`, which names `where`."""
    return typed(TuneRecord, data, where)


def summarise(runs: Sequence[dict[str, Scores]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Computes split -> metric -> (mean, sample standard deviation) over the scores of runs."""
    splits = {split: list(scores) for split, scores in runs[0].items()}
    return {
        split: {name: mean_and_deviation([run[split][name] for run in runs]) for name in names}
        for split, names in splits.items()
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1; 0 for one value).

    >>> mean_and_deviation([1.0, 2.0, 3.0])
    (2.0, 1.0)
    """
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
