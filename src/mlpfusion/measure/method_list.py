"""Methods written as a list, for what is measured of several."""

from typing import Any

from mlpfusion.errors import InputError
from mlpfusion.methods.names import method_name, parse_method
from mlpfusion.methods.table import ON_TASK, ONE_SHOT

# The label of the model in which nothing was compressed.
FULL = "full"


def parse_methods(text: str) -> list[Any]:
    """Returns configs from names with options; `all` has those that need no labels. Raises `InputError`.

    >>> parse_methods("random-neurons,magnitude")
    [RandomNeurons(), Magnitude()]
    """
    methods: list[Any] = []
    for item in text.split(","):
        every = item.strip() == "all"
        methods += [method() for method in ONE_SHOT] if every else [_without_labels(item.strip())]
    return methods


def _without_labels(text: str) -> Any:
    name = text.partition(":")[0]
    if name in [method_name(method) for method in ON_TASK]:
        raise InputError(
            f"`methods` must need no labels here, got {name}, which learns on a task: "
            "`mlpfusion compress --task`, then `mlpfusion tune` its result"
        )
    return parse_method(text)
