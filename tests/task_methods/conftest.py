"""A small task for pico models, and the job that a task method gets."""

from typing import Any

import pytest
from pico import pico_model
from tiny_task import make_task
from transformers import AutoModelForSequenceClassification

from mlpfusion.architectures.sites import find_sites
from mlpfusion.architectures.table import find_architecture
from mlpfusion.task_methods import TaskJob
from mlpfusion.tasks.encode import EncodedTask


@pytest.fixture(scope="session")
def task() -> EncodedTask:
    return make_task()


@pytest.fixture
def make_job(task):
    """The job on the last two blocks of a pico model, whose parameters all train."""

    def make(name: str = "bert", keep_ratio: float = 0.25, data: EncodedTask = task, **options: Any) -> TaskJob:
        model = pico_model(name, AutoModelForSequenceClassification, **options).requires_grad_(True)
        sites = find_sites(model, find_architecture(model.config.model_type))[-2:]
        return TaskJob(model, tuple(sites), keep_ratio, data, 0, lambda done, total, what: None)

    return make
