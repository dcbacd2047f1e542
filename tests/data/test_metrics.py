import numpy as np
import pytest

from mlpfusion.data.labelled.glue import GLUE
from mlpfusion.data.labelled.metrics import METRICS, score
from mlpfusion.data.tasks import check_metric
from mlpfusion.errors import InputError
from mlpfusion.tune.record import mean_and_deviation

LABELS = np.array([0, 0, 1, 1, 1, 0])
FOUND = np.array([0, 1, 1, 0, 1, 0])  # 2 true positives, 1 false one, 1 false negative, 2 true negatives


def test_values_by_hand():
    logits = np.stack([1.0 - FOUND, FOUND], axis=1)
    assert score(GLUE["sst2"], logits, LABELS) == {"accuracy": pytest.approx(4 / 6)}
    assert score(GLUE["mrpc"], logits, LABELS) == {"accuracy": pytest.approx(4 / 6), "f1": pytest.approx(4 / 6)}
    assert score(GLUE["cola"], logits, LABELS)["matthews"] == pytest.approx((2 * 2 - 1 * 1) / 9)


@pytest.mark.parametrize("seed", [0, 1])
def test_correlations_do_not_depend_on_scale_nor_spearman_on_the_curve(seed):
    x, noise = np.random.default_rng(seed).normal(size=(2, 50))
    logits = (x + 0.5 * noise)[:, None]
    plain, scaled = score(GLUE["stsb"], logits, x), score(GLUE["stsb"], 3 * logits - 7, x)
    assert scaled == pytest.approx(plain)
    assert plain["pearson"] == pytest.approx(np.corrcoef(x, logits[:, 0])[0, 1])
    assert METRICS["spearman"](x, np.exp(logits[:, 0])) == pytest.approx(plain["spearman"])


@pytest.mark.parametrize("name", METRICS)
def test_constant_predictions_give_a_number(name):
    assert np.isfinite(METRICS[name](LABELS, np.zeros(6)))
    assert METRICS[name](LABELS, LABELS) == pytest.approx(1)


@pytest.mark.parametrize("task", GLUE.values(), ids=GLUE)
def test_every_task_names_metrics_that_exist(task):
    assert set(task.metrics) <= set(METRICS)
    assert check_metric(task, None) == task.metrics[0]
    with pytest.raises(InputError, match="`metric_for_best_model` must be one of .*, got 'bleu'"):
        check_metric(task, "bleu")


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
