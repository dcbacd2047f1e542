"""The saved states of a run, from which it is resumed: complete ones are marked, the others never read."""

import shutil
from pathlib import Path

from mlpfusion.checkpoint.write import sync

_MARK = "complete"


def mark_complete(state: Path) -> None:
    """Declares a state complete, after all its files are on disk."""
    for file in sorted(state.rglob("*")):
        sync(file)
    (state / _MARK).touch()
    sync(state / _MARK)
    sync(state)


def unmark(state: Path) -> None:
    """Takes the mark away before a state is written again or removed."""
    (state / _MARK).unlink(missing_ok=True)


def newest_state(folder: Path) -> Path | None:
    """The complete state of the most steps in `folder`, None without one; incomplete ones are removed."""
    states = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for state in states:
        if not (state / _MARK).exists():
            shutil.rmtree(state)
    return next((state for state in reversed(states) if (state / _MARK).exists()), None)


def keep_states(folder: Path, steps: set[int]) -> None:
    """Removes the states in `folder` but those after `steps` steps."""
    for state in folder.glob("checkpoint-*"):
        if int(state.name.rpartition("-")[2]) not in steps:
            unmark(state)
            shutil.rmtree(state)
