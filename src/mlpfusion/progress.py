"""How far a long piece of work is: a callback `(done, total, what)`."""

from collections.abc import Callable

from mlpfusion.errors import InputError, shown

Progress = Callable[[int, int, str], None]


def shown_progress(progress: Progress | None) -> Progress:
    """Returns `progress`, or what shows nothing for None. Raises `InputError` for what cannot be called."""
    if progress is None:
        return lambda done, total, path: None
    if not callable(progress):
        raise InputError(f"`progress` must be a function of done, total and path, got {shown(progress)}")
    return progress
