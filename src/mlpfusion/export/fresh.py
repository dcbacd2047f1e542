"""Runs Python in a process of its own, in which this package cannot be imported."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from mlpfusion.errors import InputError, printable

_RUNNERS = Path(__file__).parent / "runners"
# Runs a module or a file under its own name; whoever imports this package in it fails.
_WITHOUT_PACKAGE = """\
import runpy, sys
sys.modules["mlpfusion"] = None
how, name, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = name
getattr(runpy, how)(name, run_name="__main__")
"""


def run_module(name: str, arguments: Sequence[str]) -> None:
    """Runs an installed module. Raises `InputError` with the last line that it says if it fails."""
    _run("run_module", name, arguments)


def outputs_of(runner: str, exported: Path, inputs: dict[str, Tensor]) -> Tensor:
    """The first output of what was exported for `inputs`, as the script `runner` computes it.

    Raises `InputError` with the last line that the script says if it fails.
    """
    with tempfile.TemporaryDirectory() as between:
        given, made = Path(between) / "inputs.safetensors", Path(between) / "outputs.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, given)
        _run("run_path", str(_RUNNERS / f"{runner}.py"), [str(exported), str(given), str(made)])
        return load_file(made)["outputs"]


def _run(how: str, name: str, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-P", "-c", _WITHOUT_PACKAGE, how, name, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own files)
    if run.returncode != 0:
        said = run.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError(f"`to` must name a form that fits the model, {Path(name).stem} says: {printable(said[-1])}")
