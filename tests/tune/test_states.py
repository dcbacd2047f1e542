"""Saved states: what is read is what was saved, or it is not read; the run ends as if it had never stopped."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import pico_model
from tiny_task import make_task
from transformers import AutoModelForSequenceClassification, TrainerCallback

from mlpfusion.errors import DamageWarning
from mlpfusion.options.adapters.dsee import Dsee, Support
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.storage.manifest import damage, seal
from mlpfusion.storage.states import newest_state
from mlpfusion.tune.finetune import RunContext, finetune

TASK = make_task()
CONFIG = Finetune(learning_rate=2e-3, epochs=3, batch_size=16, save_steps=2, device="cpu", seed=3)  # 6 steps an epoch
CLOCK = ("seconds", "seconds_per_step", "peak_bytes")
Result = tuple[dict[str, bytes], dict[str, Any]]


class StopError(Exception):
    """In the place of a kill."""


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise StopError


def train(folder: Path | None = None, config: Finetune = CONFIG, stop: int | None = None) -> Result:
    model = pico_model("bert", AutoModelForSequenceClassification)
    where = RunContext(folder, callbacks=[] if stop is None else [StopAfter(stop)])
    trained, record = finetune(model, TASK, config, where)
    weights = {name: value.numpy().tobytes() for name, value in trained.state_dict().items()}
    return weights, {name: value for name, value in asdict(record).items() if name not in CLOCK}


def stopped(folder: Path, config: Finetune = CONFIG, step: int = 17) -> Path:
    """The newest state of a run that was stopped: checkpoint-16, beside it that of the best epoch."""
    folder.mkdir()
    with pytest.raises(StopError):
        train(folder, config, step)
    return folder / f"checkpoint-{step - step % 2}"


@pytest.fixture(scope="module")
def whole() -> Result:
    return train()


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> Path:
    """What a run leaves that was stopped after 17 of 18 steps."""
    folder = tmp_path_factory.mktemp("states") / "run"
    stopped(folder)
    assert {path.name for path in folder.iterdir()} > {"checkpoint-16"}
    return folder


@pytest.fixture
def run(states, tmp_path) -> Path:
    return Path(shutil.copytree(states, tmp_path / "run"))


@pytest.mark.parametrize("step", [7, 13])
def test_the_whole_record_of_a_resumed_run_is_that_of_an_unbroken_one(step, whole, tmp_path):
    stopped(tmp_path / "run", step=step)
    assert train(tmp_path / "run") == whole
    assert [step for step, _ in whole[1]["training_loss"]] == [10]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, lora=Lora(r=2, dropout=0.1)),
        replace(CONFIG, dsee=Dsee(2, support=Support(8))),
        replace(CONFIG, dsee=Dsee(2, support=Support(8, "gradient"))),
    ],
    ids=["lora", "dsee", "dsee, gradient"],
)
def test_a_run_with_an_adapter_is_resumed_to_the_same_record(config, tmp_path):
    stopped(tmp_path / "run", config, 13)
    assert train(tmp_path / "run", config) == train(config=config)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[2 * len(content) // 3] ^= 1
    file.write_bytes(content)


FILES = ("model.safetensors", "optimizer.safetensors", "optimizer.json", "schedule.json", "process-0.json")
FILES += ("process-0.safetensors", "trainer_state.json", "config.json", "complete")
DAMAGES: dict[str, Callable[[Path], Any]] = {
    **{f"{name} flipped": lambda state, name=name: flip(state / name) for name in FILES},
    **{f"{name} lost": lambda state, name=name: (state / name).unlink() for name in FILES[:-1]},
    "one more": lambda state: (state / "pytorch_model.bin").write_bytes(b"x"),
    "a link": lambda state: (state / "more").symlink_to(state),
    "an empty mark": lambda state: (state / "complete").write_bytes(b""),
    "a mark without files": lambda state: (state / "complete").write_text("[]"),
    "nothing but the mark": lambda state: [file.unlink() for file in state.iterdir() if file.name != "complete"],
}


def test_no_kind_of_damage_of_the_newest_state_changes_a_byte_of_the_result(states, tmp_path):
    """The state is told apart from a good one; from the one before the result is the same, as the next test shows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_state(states) == states / "checkpoint-16"
    for name, harm in DAMAGES.items():
        folder = Path(shutil.copytree(states, tmp_path / name))
        harm(folder / "checkpoint-16")
        with pytest.warns(DamageWarning, match="is not what was saved"):
            found = newest_state(folder)
        assert found is not None, name
        assert found.name in ("checkpoint-6", "checkpoint-12"), name
        assert not (folder / "checkpoint-16").exists()


def test_a_run_with_a_damaged_state_goes_on_from_the_one_before_to_the_same_bytes(run, whole):
    flip(run / "checkpoint-16" / "optimizer.safetensors")
    with pytest.warns(DamageWarning, match=r"optimizer.safetensors has other bytes\): the run goes on from"):
        assert train(run) == whole


def test_a_state_whose_best_state_is_damaged_is_not_used_either(run, whole):
    (best,) = (path for path in run.iterdir() if path.name != "checkpoint-16")
    flip(best / "model.safetensors")
    with pytest.warns(DamageWarning, match="from the beginning") as told:
        assert train(run) == whole
    assert len(told) == 2
    assert "its best state is that of step" in str(told[0].message)


def test_what_is_no_state_is_neither_read_nor_followed(run, whole, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").touch()
    (run / "checkpoint-abc").mkdir()
    (run / "checkpoint-99").touch()
    (run / "checkpoint-98").symlink_to(precious)
    (run / "checkpoint-18").symlink_to(precious)  # where the next state belongs
    (run / "checkpoint-20").mkdir()  # not marked
    os.mkfifo(run / "checkpoint-97")
    assert train(run) == whole
    assert [file.name for file in precious.iterdir()] == ["thesis.tex"]
    assert (run / "checkpoint-18" / "complete").is_file()
    assert not (run / "checkpoint-18").is_symlink()


def test_the_best_state_is_found_where_the_folder_was_moved_to(run, whole, tmp_path):
    moved = run.rename(tmp_path / "moved")
    assert train(moved) == whole


def test_states_hold_nothing_pickled_and_a_pickle_is_never_opened(run, whole, monkeypatch):
    names = {path.name for path in run.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ""}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("torch.load")

    monkeypatch.setattr(torch, "load", refuse)
    planted = Path(shutil.copytree(run, run.with_name("planted"))) / "checkpoint-16"
    (planted / "model.safetensors").rename(planted / "pytorch_model.bin")
    (planted / "complete").unlink()
    seal(planted)
    with pytest.warns(DamageWarning, match="pytorch_model.bin is pickled"):
        assert train(planted.parent) == whole
    assert train(run) == whole


def test_a_sealed_folder_tells_what_happened_to_it(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.bin").write_bytes(b"123")
    assert damage(tmp_path) == "it holds no complete"
    seal(tmp_path)
    assert damage(tmp_path) is None
    listed = json.loads((tmp_path / "complete").read_text())["files"]
    assert listed == {"part/one.bin": {"size": 3, "sha256": hashlib.sha256(b"123").hexdigest()}}
    (tmp_path / "part" / "one.bin").write_bytes(b"124")
    assert damage(tmp_path) == "part/one.bin has other bytes"
