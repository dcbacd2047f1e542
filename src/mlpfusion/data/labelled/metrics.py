"""The metrics of GLUE, computed by scikit-learn and SciPy."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, pearsonr, spearmanr

from mlpfusion.data.labelled.glue import LabelledTask

Metric = Callable[[NDArray, NDArray], float]


def _correlation(function: Callable) -> Metric:
    def metric(labels: NDArray, predictions: NDArray) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            warnings.simplefilter("ignore", NearConstantInputWarning)
            value = float(function(labels, predictions).statistic)
        return value if np.isfinite(value) else 0.0

    return metric


def _classified(name: str) -> Metric:
    def metric(labels: NDArray, predictions: NDArray) -> float:
        from sklearn import metrics  # an installation without training names the metrics too

        return float(getattr(metrics, name)(labels, predictions))

    return metric


# Arguments: labels, predictions. The correlation with a constant is undefined: 0, as scikit-learn's Matthews has it.
METRICS: dict[str, Metric] = {
    "accuracy": _classified("accuracy_score"),
    "f1": _classified("f1_score"),
    "matthews": _classified("matthews_corrcoef"),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}


def predictions(task: LabelledTask, logits: NDArray) -> NDArray:
    """Predicted class numbers, or the predicted numbers of a regression.

    `logits` has shape (samples, num_labels).

    >>> from mlpfusion.data.labelled.glue import GLUE
    >>> predictions(GLUE["rte"], np.array([[2.0, 1.0], [0.0, 1.0]]))
    array([0, 1])
    """
    return logits.reshape(len(logits)) if task.is_regression else logits.argmax(axis=-1)


def score(task: LabelledTask, logits: NDArray, labels: NDArray) -> dict[str, float]:
    """Every metric of `task` by name, each between -1 and 1.

    `logits` has shape (samples, num_labels), `labels` (samples,). F1 is that of the class
    `task.positive`.

    >>> from mlpfusion.data.labelled.glue import GLUE
    >>> score(GLUE["rte"], np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([0, 0]))
    {'accuracy': 0.5}
    """
    predicted = predictions(task, logits)
    pairs = dict.fromkeys(task.metrics, (labels, predicted))
    if "f1" in pairs:
        pairs["f1"] = (labels == task.positive, predicted == task.positive)
    return {name: METRICS[name](*pair) for name, pair in pairs.items()}
