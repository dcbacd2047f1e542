"""The job that a task method gets: a pico model, its last two blocks, and the small task."""

from typing import Any

from pico import pico_model, sites_of
from tiny_task import make_task
from transformers import AutoModelForSequenceClassification

from mlpfusion.data.encode import EncodedTask
from mlpfusion.methods.on_task.job import TaskJob

HALF = make_task()


def make_job(name: str = "bert", keep_ratio: float = 0.25, data: EncodedTask = HALF, **options: Any) -> TaskJob:
    """All parameters of the model train; `options` are those of `pico_model`."""
    model = pico_model(name, AutoModelForSequenceClassification, **options).requires_grad_(True)
    sites = sites_of(model)[-2:]
    widths = tuple(round(keep_ratio * site.intermediate_size) for site in sites)
    return TaskJob(model, tuple(sites), keep_ratio, data, 0, lambda done, total, what: None, widths)
