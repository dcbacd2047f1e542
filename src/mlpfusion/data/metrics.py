"""The metrics of GLUE, by scikit-learn and scipy."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from mlpfusion.data.glue import Task
from mlpfusion.errors import InputError

Metric = Callable[[NDArray, NDArray], float]


def _correlation(function: Callable) -> Metric:
    def metric(labels: NDArray, predictions: NDArray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            value = float(function(labels, predictions).statistic)
        return value if np.isfinite(value) else 0.0

    return metric


# Each takes labels and predictions. Where one of the two is constant a correlation is undefined: 0, as for Matthews'.
METRICS: dict[str, Metric] = {
    "accuracy": lambda labels, predictions: float(accuracy_score(labels, predictions)),
    "f1": lambda labels, predictions: float(f1_score(labels, predictions)),
    "matthews": lambda labels, predictions: float(matthews_corrcoef(labels, predictions)),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}


def predictions(task: Task, logits: NDArray) -> NDArray:
    """Class numbers, or the numbers themselves for a regression, from logits of shape (samples, num_labels)."""
    return logits.reshape(len(logits)) if task.is_regression else logits.argmax(axis=-1)


def score(task: Task, logits: NDArray, labels: NDArray) -> dict[str, float]:
    """Every metric of `task`, each between -1 and 1.

    `logits` has shape (samples, num_labels), `labels` (samples,). F1 is that of the class `task.positive`.
    """
    found = predictions(task, logits)
    pairs = dict.fromkeys(task.metrics, (labels, found))
    if "f1" in pairs:
        pairs["f1"] = (labels == task.positive, found == task.positive)
    return {name: METRICS[name](*pair) for name, pair in pairs.items()}


def check_metric(task: Task, name: str | None) -> str:
    """`name`, or the headline metric of `task` for None. Raises `InputError` if it is none of the task's."""
    if name is not None and name not in task.metrics:
        raise InputError(f"`metric_for_best_model` must be one of {', '.join(task.metrics)}, got {name!r}")
    return name or task.headline


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1; 0 for one value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
