"""`mlpfusion demo`."""

from dataclasses import dataclass
from pathlib import Path

from mlpfusion.commands.command import Command
from mlpfusion.options.fields import option
from mlpfusion.progress import Progress


@dataclass(frozen=True)
class DemoOptions:
    """Cuts a real pretrained model two ways, measures both, and fine-tunes all three on a small task. Offline."""

    out: str = option("demo-out", "Folder for models, data and picture.")
    seed: int = option(0, "Of all random steps.")


def run(options: DemoOptions, _progress: Progress) -> None:
    """Runs the demo, which prints as it goes."""
    from mlpfusion.demo import run_demo

    run_demo(Path(options.out), options.seed)


def show(_result: None, _options: DemoOptions) -> None:
    """Prints nothing: all is said."""


SUMMARY = "Cuts a real pretrained model, measures and fine-tunes it."
COMMAND = Command("demo", SUMMARY, DemoOptions, run, show, has_json=False)
