"""Progress of long work: a callback `(done, total, what)`, a bar, and lines of the logger `mlpfusion`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlpfusion.errors import InputError, shown

Progress = Callable[[int, int, str], None]

_LOGGER = logging.getLogger("mlpfusion")
_LOGGER.addHandler(logging.NullHandler())


def shown_progress(progress: Progress | bool | None) -> Progress:
    """Returns a callback, whose calls are also lines of the logger at the level DEBUG.

    It calls `progress`; moves a bar of tqdm for True; and does nothing more for None and False.

    >>> shown_progress(None)(1, 6, "layers.0.mlp")
    """
    if isinstance(progress, _Logged):
        return progress
    if progress is True:
        return _Logged(_Bar())
    if progress is None or progress is False:
        return _Logged(lambda done, total, what: None)
    if not callable(progress):
        raise InputError(f"`progress` must be True or a function of done, total and path, got {shown(progress)}")
    return _Logged(progress)


@dataclass(frozen=True)
class _Logged:
    """A callback whose calls are lines of the logger too."""

    told: Progress

    def __call__(self, done: int, total: int, what: str) -> None:
        if what:  # the last call of all has nothing to say
            _LOGGER.debug("%s of %s: %s", done, total, what)
        self.told(done, total, what)


class _Bar:
    """A bar of tqdm, in a notebook one of its widgets; another one for every stage of the work."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        from tqdm.auto import tqdm

        if self._bar is not None and (self._bar.total != total or done < self._bar.n):
            self._close()
        if self._bar is None:
            self._bar = tqdm(total=total)
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)
        self._bar.refresh()
        if done >= total:
            self._close()

    def _close(self) -> None:
        self._bar.close()
        self._bar = None
