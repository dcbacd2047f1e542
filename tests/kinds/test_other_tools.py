"""Tools that know nothing of this package load compressed checkpoints in the ways that docs/other-tools.md tells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pico import pico_model

import mlpfusion

TOOL = """
import sys
from transformers import AutoModel
print("width", AutoModel.from_pretrained(sys.argv[1]).encoder.layer[0].intermediate.dense.out_features)
"""


def run(*command: str, paths: tuple[Path, ...]) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *sys.path])}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.mark.slow
def test_a_tool_loads_a_compressed_checkpoint_behind_the_import_and_by_sitecustomize(tmp_path):
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    out, tool = tmp_path / "out", tmp_path / "some_tool.py"
    model.save_pretrained(out)
    tool.write_text(TOOL)
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "sitecustomize.py").write_text("import mlpfusion\n")
    line = "import mlpfusion, runpy; runpy.run_module('some_tool', run_name='__main__', alter_sys=True)"
    assert "width 14" in run("-c", line, str(out), paths=(tmp_path,))
    assert "width 14" in run(str(tool), str(out), paths=(tmp_path / "with",))
    assert "ignore_mismatched_sizes" in run(str(tool), str(out), paths=())
