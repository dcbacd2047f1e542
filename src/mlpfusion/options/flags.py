"""Options as parameters of a click command, and the values that were typed."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from mlpfusion.errors import shown
from mlpfusion.options.fields import Leaf, leaves


class CommaList(click.ParamType):
    """Values with commas between, as `0,1,2`."""

    name = "list"

    def __init__(self, kind: type):
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Returns the values. Raises `click.BadParameter` for one of another type."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(item) for item in value.split(","))
        except ValueError:
            self.fail(f"must be a list with commas, got {shown(value)}", param, ctx)


def parameters(kind: type, *, in_file: bool) -> list[click.Parameter]:
    """Returns the arguments and flags of options; `in_file`: they can stand in a file, so click requires none."""
    with_flags = [leaf for leaf in leaves(kind) if leaf.about.has_flag]
    return [_argument(leaf, in_file) if leaf.about.is_argument else _flag(leaf, in_file) for leaf in with_flags]


def given_values(kind: type, context: click.Context) -> dict[str, Any]:
    """Returns the values that were typed, by the names of their fields."""
    values = {}
    for leaf in leaves(kind):
        typed = leaf.about.has_flag and context.get_parameter_source(leaf.name) is not ParameterSource.DEFAULT
        if typed:
            value = context.params[leaf.name]
            values[leaf.name] = _options_of_method(value) if leaf.kinds == (dict,) else value
    return values


def merged(in_file: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a file with those that were typed over them, options of a method one by one."""
    both = {**in_file, **typed}
    for name, value in typed.items():
        if isinstance(value, dict) and isinstance(in_file.get(name), dict):
            both[name] = in_file[name] | value
    return both


def command_line(words: Sequence[str], values: Mapping[str, Any]) -> str:
    """What one would type: `words`, then `values` by the flags of their names.

    >>> command_line(["mlpfusion", "tune", "my model"], {"seeds": (0, 1), "new_head": True, "option": {"a": 1, "b": 2}})
    "mlpfusion tune 'my model' --seeds 0,1 --new-head --option a=1 --option b=2"
    """
    typed = list(words)
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            typed.append(flag)
        elif isinstance(value, dict):
            typed += [part for key, one in value.items() for part in (flag, f"{key}={one}")]
        else:
            typed += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(typed)


def _argument(leaf: Leaf, in_file: bool) -> click.Argument:
    number = -1 if leaf.is_tuple else 1
    if leaf.about.required:  # click would put what may stand in a file between brackets
        return click.Argument([leaf.name], required=not in_file, metavar=leaf.about.metavar, nargs=number)
    return click.Argument([leaf.name], required=False, nargs=number)


def _flag(leaf: Leaf, in_file: bool) -> click.Option:
    about = leaf.about
    if leaf.kinds == (bool,):
        return click.Option([leaf.name, leaf.flag], is_flag=True, help=about.help)
    if leaf.kinds == (dict,):
        return click.Option([leaf.name, leaf.flag], multiple=True, metavar=about.metavar, help=about.help)
    kind = next(one for one in leaf.kinds if one is not type(None))
    default = leaf.default if leaf.default not in (None, "", ()) else None
    return click.Option(
        [leaf.name, leaf.flag],
        type=CommaList(kind) if leaf.is_tuple else kind,
        default=default,
        show_default=default is not None,
        required=about.required and not in_file and not leaf.default,
        metavar=about.metavar,
        help=about.help,
    )


def _options_of_method(texts: tuple[str, ...]) -> dict[str, Any]:
    from mlpfusion.storage.yaml import parse_option

    return dict(parse_option(text) for text in texts)
