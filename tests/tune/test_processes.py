"""Several processes of one launch train one model, on machines with and without a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from command import call
from tiny_task import make_task, save_checkpoint, write_files

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.task_model import load_for_task
from mlpfusion.options.training import Finetune
from mlpfusion.storage.processes import on_cpu
from mlpfusion.tune.finetune import RunContext, finetune
from mlpfusion.tune.trainer import StageTrainer, training_arguments


def test_where_there_is_nothing_but_a_cpu_it_is_taken_unasked(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert on_cpu("auto")
    assert training_arguments(tmp_path, device="auto", precision="bf16").device == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not on_cpu("auto")
    assert on_cpu("cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # accelerate launch --cpu
    assert on_cpu("auto")


def test_weights_without_a_gradient_are_known_before_training(monkeypatch, tmp_path):
    """DDP looks for such weights in every step, or fails at them: it must be told whether there are any."""
    found, started = [], torch.get_rng_state()

    def told(trainer: StageTrainer, state: object) -> None:
        before = [parameter.clone() for parameter in trainer.network.parameters()]
        found.append(trainer.leaves_some_idle())
        trainer.loss = lambda model, batch: model.bert(batch["input_ids"]).last_hidden_state.mean()
        found.append(trainer.leaves_some_idle())  # the head has none
        for parameter, value in zip(trainer.network.parameters(), before, strict=True):
            assert torch.equal(parameter, value)
            assert parameter.grad is None
        raise KeyboardInterrupt

    monkeypatch.setattr(StageTrainer, "train_on", told)
    data = make_task()
    model = load_for_task(open_for_training(str(save_checkpoint(tmp_path / "model"))), data.task, 0)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, data, Finetune(epochs=1, device="cpu"), RunContext(tmp_path / "states"))
    assert found == [False, True]
    assert torch.equal(torch.get_rng_state(), started)


LATE = '''"""Runs the command line; the second process of the launch reads every checkpoint later than the first."""
import os, sys, time
from mlpfusion import cli
from mlpfusion.tune import run

load = run.load_for_task

def load_late(*arguments):
    time.sleep(2 * int(os.environ["LOCAL_RANK"]))
    return load(*arguments)

run.load_for_task = load_late
sys.exit(cli.main())
'''


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--dsee", "rank=2,sparse=8,omega=gradient"]], ids=["all", "dsee"])
def test_two_processes_tune_layer_by_layer_and_then_all_without_a_word(more, tmp_path):
    model, files = save_checkpoint(tmp_path / "model"), write_files(tmp_path)
    assert call("compress", model, tmp_path / "cut", "--keep-ratio", 0.5).exit_code == 0
    flags = ["--train", files[0], "--validation", files[1], "--text-column", "sentence", "--label-column", "label"]
    flags += ["--epochs", 1, "--layerwise", 1, "--teacher", model, *more]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (tmp_path / "late.py").write_text(LATE)
    job = [tmp_path / "late.py", "tune", tmp_path / "cut", tmp_path / "out", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *map(str, job)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("is complete") == 1
    assert not done.stderr.strip(), done.stderr
