"""Progress of long work: a callback `(done, total, what)`."""

from collections.abc import Callable

from mlpfusion.errors import InputError, shown

Progress = Callable[[int, int, str], None]


def shown_progress(progress: Progress | None) -> Progress:
    """Returns `progress`, or for None an empty callback.

    >>> shown_progress(None)(1, 6, "layers.0.mlp")
    """
    if progress is None:
        return lambda done, total, path: None
    if not callable(progress):
        raise InputError(f"`progress` must be a function of done, total and path, got {shown(progress)}")
    return progress
