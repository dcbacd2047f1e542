"""Paths of deployment on a tiny Llama: what works, what is refused, what is neither."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripts import load_script
from tiny_task import save_checkpoint
from transformers import AutoModelForCausalLM

from mlpfusion.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # of a model without sense that is cut, and of the tools


@pytest.fixture(scope="module")
def paths() -> Any:
    return load_script("benchmarks/deploy_paths.py")


@pytest.fixture(scope="module")
def cases(paths, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    source = save_checkpoint(folder / "source", "llama", AutoModelForCausalLM)
    paths.make_cases({"Llama": str(source)}, folder)
    return folder


def case(paths, cases, form, scratch):
    return paths.Case("Llama", form, cases / f"Llama-{form}", scratch)


@pytest.mark.slow
def test_the_trainable_and_the_uneven_form_are_refused_without_the_package(paths, cases, tmp_path):
    way = paths.WAYS["transformers without the package"]
    for form in ("fusion", "uneven"):
        with pytest.raises(InputError) as refused:
            way.tried(case(paths, cases, form, tmp_path))
        found = paths.error_outcome(str(refused.value))
        assert (found["outcome"], found["reason"]) == ("refused", "sizes do not match")
    assert paths.tried(way, case(paths, cases, "folded", tmp_path))["outcome"] == "works"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fusion", "ntk-match", "folded", "uneven"])
def test_every_form_loads_trains_and_is_exported(form, paths, cases, tmp_path):
    for name in ("transformers, `import mlpfusion`", "torch.export", "LoRA (PEFT)", "Trainer, resumed"):
        (tmp_path / name.split()[0]).mkdir()
        found = paths.tried(paths.WAYS[name], case(paths, cases, form, tmp_path / name.split()[0]))
        assert (found["outcome"], found["difference"] < 1e-4) == ("works", True), (name, found)


def test_what_is_no_refusal_is_a_failure(paths):
    assert paths.error_outcome("Traceback\nKeyError: 'x'") == {
        "outcome": "fails",
        "reason": "KeyError: 'x'",
    }
    assert paths.error_outcome("")["reason"] == "it said nothing"
    assert len(paths.error_outcome("ValueError: " + 1000 * "x")["reason"]) == paths.CUT


def test_what_a_path_started_ends_with_it(paths):
    command = ["sh", "-c", "setsid sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        started = psutil.Process(int(leader.stdout.readline()))
        paths.stop(leader.pid)
        assert leader.wait(10) == -signal.SIGKILL
    psutil.wait_procs([started], timeout=10)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def test_outputs_that_are_too_far_off_are_a_failure(paths):
    assert paths.tried(paths.Way(lambda case: 0.5), None) == {"outcome": "fails", "difference": 0.5}
    assert paths.tried(paths.Way(lambda case: float("nan")), None)["outcome"] == "fails"
    assert paths.tried(paths.Way(lambda case: 0.5, most=1.0), None)["outcome"] == "works"
