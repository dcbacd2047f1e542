"""The saved states of a run, from which it is resumed: only those that hold what was saved are read."""

import json
import re
import shutil
import warnings
from pathlib import Path

from mlpfusion.errors import DamageWarning
from mlpfusion.storage.manifest import damage, is_sealed, seal, unseal
from mlpfusion.storage.processes import of_first

_PICKLED = {".bin", ".pt", ".pth", ".pkl"}


def state_folder(folder: Path, step: int) -> Path:
    """The state in `folder` after `step` steps."""
    return folder / f"checkpoint-{step}"


def seal_state(state: Path) -> None:
    """Declares a state complete, after all its files are on disk."""
    seal(state)


def remove_state(state: Path) -> None:
    """Removes a state, or what is in its place; its mark first. A link goes, what it leads to stays."""
    if state.is_dir() and not state.is_symlink():
        unseal(state)
        shutil.rmtree(state)
    else:
        state.unlink(missing_ok=True)


def newest_state(folder: Path, *, pickles: bool = False) -> Path | None:
    """The newest state in `folder` that holds what was saved, as its best one does; None without one.

    Those that were not saved to the end are removed. So is a damaged one, with a `DamageWarning`, and the one before is
    taken. A pickled file counts as damage unless `pickles`. Of several processes the first looks.
    """
    return of_first(lambda: _newest_state(folder, pickles))


def last_sealed(folder: Path) -> Path | None:
    """The state of the most steps that was saved to its end, None without one; what it holds is not looked at."""
    return next((state for state in _states(folder) if is_sealed(state)), None)


def keep_states(folder: Path, steps: set[int]) -> None:
    """Removes the states in `folder` but those after `steps` steps."""
    for state in _states(folder):
        if _step(state) not in steps:
            remove_state(state)


def _newest_state(folder: Path, pickles: bool) -> Path | None:
    damaged: dict[Path, str] = {}
    for state in _states(folder):
        if not is_sealed(state):
            remove_state(state)
            continue
        what = damage(state) or (None if pickles else _pickle_in(state)) or _damage_of_best(state)
        if what is None:
            _tell(damaged, state)
            return state
        damaged[state] = what
    _tell(damaged, None)
    return None


def _tell(damaged: dict[Path, str], used: Path | None) -> None:
    goes_on = "from the beginning" if used is None else f"from {used.name}"
    for state, what in damaged.items():
        warnings.warn(
            f"the state {state} is not what was saved ({what}): the run goes on {goes_on}", DamageWarning, stacklevel=2
        )
        remove_state(state)


def _damage_of_best(state: Path) -> str | None:
    try:
        step = json.loads((state / "trainer_state.json").read_bytes())["best_global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its trainer_state.json cannot be read"
    if step is None or step == _step(state):
        return None
    what = damage(state_folder(state.parent, step))
    return what and f"its best state is that of step {step}, of which {what}"


def _pickle_in(state: Path) -> str | None:
    found = sorted(file.name for file in state.rglob("*") if file.suffix in _PICKLED)
    return f"{found[0]} is pickled" if found else None


def _states(folder: Path) -> list[Path]:
    """The newest first; a file or a link by such a name is none."""
    found = [
        path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-(0|[1-9][0-9]{0,17})", path.name)
    ]
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=_step, reverse=True)


def _step(state: Path) -> int:
    return int(state.name.rpartition("-")[2])
