"""`mlpfusion tune` and `distill` killed at many moments: a resumed run leaves the bytes of an unbroken one."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from command import refused
from kill import fork_server, run
from safetensors.torch import load_file

RECORDS = {"tune": "mlp_fusion_tune_record.json", "distill": "mlp_fusion_distill_record.json"}
LAYERWISE = ["--batch-size", 8, "--epochs", 2, "--max-length", 16, "--learning-rate", "2e-3", "--device", "cpu"]
MANY = [moment / 40 for moment in range(1, 40)]


def command(arguments: list[str]) -> None:
    """In the child."""
    from mlpfusion.cli import main

    main(arguments)


@pytest.fixture(scope="module")
def server() -> Any:
    preload = ("mlpfusion.tune.run", "mlpfusion.tune.run_distill", "mlpfusion.report.terminal", "peft")
    return fork_server(*preload, "transformers.models.bert.modeling_bert")


@pytest.fixture
def inputs(checkpoint, fused, data, files) -> dict[str, tuple[list[object], list[object]]]:
    """Command -> what stands before and after its output folder."""
    texts = ["--data", files[0], "--column", "sentence", *LAYERWISE]
    return {"tune": ([fused], data), "distill": ([checkpoint, fused], texts)}


def run_and_die(server: Any, arguments: list[object], folder: Path, moment: int) -> tuple[int, int]:
    """Exit code and number of moments of a run that is killed at the one numbered `moment`, if it is not 0."""
    return run(server, command, ([str(one) for one in arguments],), folder, moment)


def results(out: Path, name: str) -> Any:
    """What the record says of the result, without the clock."""
    record = json.loads((out / RECORDS[name]).read_text())
    return (
        record["scores"] if name == "tune" else [record["run"][key] for key in ("loss_before", "loss_after", "steps")]
    )


@pytest.mark.parametrize(
    ("name", "flags", "moments"),
    [
        pytest.param("tune", ["--select-on", "last"], (0.55,), id="full", marks=pytest.mark.slow),
        pytest.param(
            "tune",
            ["--lora", "r=2", "--patience", "1", "--epochs", "4"],
            (0.5,),
            id="lora, patience",
            marks=pytest.mark.slow,
        ),
        pytest.param("tune", ["--dsee", "rank=2,sparse=8"], (0.3, 0.6), id="dsee", marks=pytest.mark.slow),
        pytest.param(
            "tune",
            ["--seeds", "0,1", "--learning-rate", "1e-3,5e-3"],
            MANY,
            id="every part",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param("distill", [], (0.55,), id="distill", marks=pytest.mark.slow),
        pytest.param(
            "distill", ["--objective", "hidden"], MANY, id="distill, every part", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_a_killed_run_is_resumed_to_the_same_bytes(name, flags, moments, server, inputs, tmp_path):
    before, after = inputs[name]
    after = [*after, "--save-steps", 2, *flags]  # of six (distill: eleven) an epoch
    reference, work = tmp_path / "reference", tmp_path / "work"
    reference.mkdir()
    code, in_all = run_and_die(server, [name, *before, reference / "out", *after], reference, 0)
    assert code == 0
    expected = load_file(reference / "out" / "model.safetensors")
    states = set()
    for moment in (round(share * in_all) for share in moments):
        work.mkdir()
        arguments = [name, *before, work / "out", *after]
        code, _ = run_and_die(server, arguments, work, moment)
        assert code == -signal.SIGKILL
        states |= {mark.parent.name for mark in work.glob("out.unfinished/*/*/complete")}
        if not (work / "out").exists() or (work / "out.unfinished").exists():
            code, _ = run_and_die(server, [*arguments, "--resume"], work, 0)
            assert code == 0, f"killed at {moment} of {in_all}"
        found = load_file(work / "out" / "model.safetensors")
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), f"killed at {moment}"
        assert results(work / "out", name) == results(reference / "out", name)
        assert {entry.name for entry in work.iterdir() if not entry.name.startswith(".")} == {"out"}
        shutil.rmtree(work)
    within = {"tune": range(8, 12, 2), "distill": range(12, 22, 2)}[name]
    assert states & {f"checkpoint-{step}" for step in within}  # at least one within the second epoch


def test_resuming_with_other_settings_is_refused(server, fused, data, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    run_and_die(server, ["tune", fused, work / "out", *data], work, 60)
    line = refused("tune", fused, work / "out", *data, "--resume", "--weight-decay", 0.5)
    assert "`--weight-decay` must be 0.1 to resume the run in" in line
    with Path(str(data[1])).open("a") as file:
        file.write('{"sentence": "w1", "label": 0}\n')
    assert "`--train` must be" in refused("tune", fused, work / "out", *data, "--resume")
