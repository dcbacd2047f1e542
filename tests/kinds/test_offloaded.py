"""Weights on the meta device, never made or offloaded by accelerate, are refused before anything is changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
from pico import pico_model
from task_job import HALF
from tiny_task import tiny_tokenizer
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.measure.dynamics import Dynamics, train_path
from mlpfusion.options.training import Finetune
from mlpfusion.tune.distill import Distill, distill
from mlpfusion.tune.finetune import finetune

COLLATE = DataCollatorWithPadding(tiny_tokenizer())
KINDS = {
    "narrow": mlpfusion.Fusion(),
    "low-rank": mlpfusion.SVD(),
    "masked": mlpfusion.Magnitude(),
}


def on_meta(model: Any, folder: Path) -> Any:
    return model.to("meta")


def partly_on_meta(model: Any, folder: Path) -> Any:
    model.bert.encoder.layer[1].to("meta")
    return model


def only_scales_on_meta(model: Any, folder: Path) -> Any:
    for module in model.modules():
        for name in dict(module.named_buffers(recurse=False)):
            setattr(module, name, getattr(module, name).to("meta"))
    return model


def on_cpu(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model)


def with_buffers(model: Any, folder: Path) -> Any:
    return accelerate.cpu_offload(model, offload_buffers=True)


def on_disk(model: Any, folder: Path) -> Any:
    accelerate.disk_offload(model, str(folder))
    return model


PLACES = [on_meta, partly_on_meta, only_scales_on_meta, on_cpu, with_buffers, on_disk]
every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)


def with_head() -> Any:
    return pico_model("bert", AutoModelForSequenceClassification)


def compressed(method: Any) -> Any:
    model = with_head()
    mlpfusion.compress(model, method, layers="last:2", keep_ratio=0.25)
    return model


def check_refused(change: Callable[[Any], object], model: Any) -> None:
    before = dict(model.named_modules()), dict(model.named_parameters()), model.config.to_dict()
    modes = [module.training for module in model.modules()]
    with pytest.raises(InputError, match="`model` must hold its weights in memory, got .* on the meta device: load it"):
        change(model)
    assert (dict(model.named_modules()), dict(model.named_parameters()), model.config.to_dict()) == before
    assert [module.training for module in model.modules()] == modes


@every_place
@pytest.mark.parametrize("kind", KINDS)
def test_fold_refuses_weights_that_are_not_in_memory(kind, place, tmp_path):
    check_refused(mlpfusion.fold, place(compressed(KINDS[kind]), tmp_path))


ENTRIES: dict[str, Callable[[Any], object]] = {
    "compress": lambda model: mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5),
    "compress on a task": lambda model: mlpfusion.compress(model, mlpfusion.LTH(), data=HALF, keep_ratio=0.5),
    "finetune": lambda model: finetune(model, HALF, Finetune(device="cpu")),
    "train_path": lambda model: train_path(model, HALF, HALF.train, Dynamics(steps=1)),
    "distill": lambda model: distill(model, with_head(), HALF.train, COLLATE, Distill(device="cpu")),
    "teacher of distill": lambda model: distill(
        compressed(KINDS["narrow"]), model, HALF.train, COLLATE, Distill(device="cpu")
    ),
}


@every_place
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_that_changes_a_model_refuses_weights_that_are_not_in_memory(entry, place, tmp_path):
    check_refused(ENTRIES[entry], place(with_head().train(), tmp_path))
