"""Compressed models under tensor parallelism."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pico import pico_inputs, pico_model
from transformers import AutoModelForCausalLM

import mlpfusion


@pytest.mark.slow
def test_a_tensor_parallel_plan_computes_trains_and_saves_the_same_in_two_processes(tmp_path):
    methods = {
        "fusion": mlpfusion.Fusion(),
        "ntk-match": mlpfusion.NTKMatch(),
        "folded": mlpfusion.FoldedFusion(),
        "masked": mlpfusion.Magnitude(),
        "low-rank": mlpfusion.SVD(),
    }
    for name, method in methods.items():
        model = pico_model("llama", AutoModelForCausalLM)
        batches = [pico_inputs("llama")] if name == "ntk-match" else None
        mlpfusion.compress(
            model, method, layers="last:2", keep_ratio=0.25, calibration=batches
        )  # width 14, 7 neurons a process
        model.save_pretrained(tmp_path / "models" / name)
    model = pico_model("llama", AutoModelForCausalLM)
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", width=13)  # 7 and 6 neurons
    model.save_pretrained(tmp_path / "models" / "fusion-13")
    script = Path(__file__).with_name("parallel_script.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(script.parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "models")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
