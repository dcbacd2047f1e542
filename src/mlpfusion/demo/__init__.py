"""The demo: a real pretrained model compressed, measured and fine-tuned, offline."""

from pathlib import Path

from mlpfusion.extras import DEMO


def run_demo(out: Path, seed: int) -> None:
    """Runs the demo into the new folder `out`.

    Raises `InputError` if `out` exists, or a package of the extra `demo` is missing.
    """
    DEMO.check()
    from mlpfusion.demo import run

    run.run_demo(out, seed)
