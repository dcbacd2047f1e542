"""Saved states of a run, to resume from; damaged ones are not read."""

import json
import re
import shutil
import warnings
from pathlib import Path

from mlpfusion.errors import DamageWarning
from mlpfusion.storage.manifest import damage, is_sealed, seal, unseal
from mlpfusion.storage.processes import of_first

# Suffixes of pickled files; reading one runs any code in it.
_PICKLED = {".bin", ".pt", ".pth", ".pkl"}


def state_folder(folder: Path, step: int) -> Path:
    """Path of the state in `folder` after `step` steps.

    >>> state_folder(Path("run"), 100).name
    'checkpoint-100'
    """
    return folder / f"checkpoint-{step}"


def seal_state(state: Path) -> None:
    """Marks a state as complete, after all its files are on disk."""
    seal(state)


def remove_state(state: Path) -> None:
    """Removes a state, its mark first. Of a link only the link is removed.

    >>> (folder / "checkpoint-3").mkdir()
    >>> remove_state(folder / "checkpoint-3")
    >>> list(folder.iterdir())
    []
    """
    if state.is_dir() and not state.is_symlink():
        unseal(state)
        shutil.rmtree(state)
    else:
        state.unlink(missing_ok=True)


def newest_state(folder: Path, *, pickles: bool = False) -> Path | None:
    """Returns the newest undamaged state in `folder`, with an undamaged best state, or None.

    Unfinished states are removed. Damaged ones are removed with a `DamageWarning`, and the one
    before is tried. A pickled file counts as damage unless `pickles`. Of several processes the
    first looks.

    >>> newest_state(folder) is None
    True
    """
    return of_first(lambda: _newest_state(folder, pickles))


def last_sealed(folder: Path) -> Path | None:
    """Returns the complete state with the most steps, or None. The files are not checked.

    >>> (folder / "checkpoint-3").mkdir()
    >>> seal_state(folder / "checkpoint-3")
    >>> last_sealed(folder).name
    'checkpoint-3'
    """
    return next((state for state in _states(folder) if is_sealed(state)), None)


def keep_states(folder: Path, steps: set[int]) -> None:
    """Removes the states in `folder` except those after `steps` steps.

    >>> (folder / "checkpoint-3").mkdir(); (folder / "checkpoint-6").mkdir()
    >>> keep_states(folder, {6})
    >>> [path.name for path in folder.iterdir()]
    ['checkpoint-6']
    """
    for state in _states(folder):
        if _step(state) not in steps:
            remove_state(state)


def _newest_state(folder: Path, pickles: bool) -> Path | None:
    damaged: dict[Path, str] = {}
    for state in _states(folder):
        if not is_sealed(state):
            remove_state(state)
            continue
        problem = damage(state) or (None if pickles else _pickle_in(state)) or _damage_of_best(state)
        if problem is None:
            _warn_and_remove(damaged, state)
            return state
        damaged[state] = problem
    _warn_and_remove(damaged, None)
    return None


def _warn_and_remove(damaged: dict[Path, str], used: Path | None) -> None:
    goes_on = "from the beginning" if used is None else f"from {used.name}"
    for state, problem in damaged.items():
        warnings.warn(
            f"the state {state} is not what was saved ({problem}): the run goes on {goes_on}",
            DamageWarning,
            stacklevel=2,
        )
        remove_state(state)


def _damage_of_best(state: Path) -> str | None:
    try:
        step = json.loads((state / "trainer_state.json").read_bytes())["best_global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its trainer_state.json cannot be read"
    if step is None or step == _step(state):
        return None
    problem = damage(state_folder(state.parent, step))
    return problem and f"its best state is that of step {step}, of which {problem}"


def _pickle_in(state: Path) -> str | None:
    pickled = sorted(file.name for file in state.rglob("*") if file.suffix in _PICKLED)
    return f"{pickled[0]} is pickled" if pickled else None


def _states(folder: Path) -> list[Path]:
    """Lists the states, newest first. Files and links of such names are none."""
    # 18 digits fit an int64, and no other spelling of a number is ours
    named = [
        path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-(0|[1-9][0-9]{0,17})", path.name)
    ]
    return sorted((path for path in named if path.is_dir() and not path.is_symlink()), key=_step, reverse=True)


def _step(state: Path) -> int:
    return int(state.name.rpartition("-")[2])
