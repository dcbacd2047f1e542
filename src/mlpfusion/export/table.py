"""The targets of `mlpfusion export`: one row each."""

from mlpfusion.errors import InputError, shown
from mlpfusion.export import executorch, gguf, graphs, hf
from mlpfusion.export.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (hf.TARGET, *graphs.TARGETS, executorch.TARGET, gguf.TARGET)
}


def find_target(name: str) -> Target:
    """The target called `name`. Raises `InputError` for an unknown one.

    >>> find_target("hf").engine
    'transformers'
    """
    if name not in TARGETS:
        raise InputError(f"`to` must be one of {', '.join(TARGETS)}, got {shown(name)}")
    return TARGETS[name]
