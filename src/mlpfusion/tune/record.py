"""What runs of training leave: plain data, JSON in the end."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from mlpfusion.data.metrics import mean_and_deviation
from mlpfusion.record import Size

TUNE_RECORD_FILE = "mlp_fusion_tune_record.json"
DISTILL_RECORD_FILE = "mlp_fusion_distill_record.json"
Scores = dict[str, float]


@dataclass(frozen=True)
class EpochRecord:
    """Loss and scores on the split that the epoch is chosen on, after an epoch (a fraction if it was not the whole)."""

    epoch: float
    step: int
    loss: float
    scores: Scores


@dataclass(frozen=True)
class RunRecord:
    """One run: one learning rate, one seed.

    `selected_on` is the split that the best epoch was chosen on (None: the last one was taken), `selection_score` its
    score there, `scores` those of the reported splits. `training_loss` holds pairs of step and mean loss since the
    last pair. `seconds_per_step` is the median of forward, backward and update; None where it was not measured.
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


@dataclass(frozen=True)
class DistillRun:
    """One stage of learning from the original; the losses before and after are those of held-out examples."""

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
    """What `mlpfusion tune` did: `runs` in the order they were run, `learning_rate` and `saved_seed` the chosen ones.

    `scores` are mean and sample standard deviation over the seeds at the chosen rate, by split and metric; `diverged`
    are the learning rates that gave NaN or Inf. `f1_class` is the class whose F1 is measured, None without F1.
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

    def metric_name(self, name: str) -> str:
        """The name of a metric for people: that of F1 says of which class it is."""
        return f"f1 of {self.f1_class}" if name == "f1" and self.f1_class is not None else name

    def to_json(self) -> str:
        """The record as indented JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class DistillRecord:
    """What `mlpfusion distill` did; the hashes are those of the two checkpoints."""

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
    """A stage from its JSON data."""
    losses: Any = tuple((step, loss) for step, loss in data["training_loss"])
    return DistillRun(**{**data, "training_loss": losses})


def distill_record_from_dict(data: dict[str, Any]) -> DistillRecord:
    """The record from its JSON data."""
    return DistillRecord(**data | {"size": Size(**data["size"]), "run": distill_run_from_dict(data["run"])})


def run_from_dict(data: dict[str, Any]) -> RunRecord:
    """A run from its JSON data."""
    epochs = tuple(EpochRecord(**epoch) for epoch in data["epochs"])
    losses = tuple((step, loss) for step, loss in data["training_loss"])
    return RunRecord(**data | {"epochs": epochs, "training_loss": losses})


def tune_record_from_dict(data: dict[str, Any]) -> TuneRecord:
    """The record from its JSON data."""
    runs = tuple(run_from_dict(run) for run in data["runs"])
    layerwise = None if data["layerwise"] is None else distill_run_from_dict(data["layerwise"])
    parts = {"size": Size(**data["size"]), "diverged": tuple(data["diverged"]), "layerwise": layerwise, "runs": runs}
    return TuneRecord(**data | parts)


def summarise(runs: list[RunRecord]) -> dict[str, dict[str, tuple[float, float]]]:
    """Split -> metric -> mean and standard deviation over `runs`."""
    splits = {split: list(scores) for split, scores in runs[0].scores.items()}
    return {
        split: {name: mean_and_deviation([run.scores[split][name] for run in runs]) for name in names}
        for split, names in splits.items()
    }
