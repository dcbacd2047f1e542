"""Options as frozen dataclasses: fields are the flags, the keys of a YAML file and their documentation.

    @dataclass(frozen=True)
    class TrainOptions:
        model: str = argument()
        epochs: int = option(3, "Passes over the data.")
        task: TaskOptions = part(TaskOptions)

A field that holds another such dataclass (`part`) gives its fields as if they stood here: `--train`, `train:`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from mlpfusion.checks import check_given
from mlpfusion.errors import InputError, shown

Options = TypeVar("Options")
_KEY = "mlpfusion"


@dataclass(frozen=True)
class About:
    """What is said about a field beside its type and default.

    `flag` is the flag, None for the field's name; a field without `has_flag` stands in YAML only. `required`: it must
    be given, on the command line or in YAML. `free`: it may differ when a run is resumed. `is_own`: it is no option
    but set by the program, once a run.
    """

    help: str = ""
    metavar: str | None = None
    flag: str | None = None
    has_flag: bool = True
    is_argument: bool = False
    required: bool = False
    free: bool = False
    is_own: bool = False


@dataclass(frozen=True)
class Leaf:
    """One option: a field that holds a value and not further fields."""

    name: str
    type: Any
    default: Any
    about: About

    @property
    def flag(self) -> str:
        """The flag, as `--keep-ratio`."""
        return self.about.flag or f"--{self.name.replace('_', '-')}"

    @property
    def is_tuple(self) -> bool:
        """True for a list of values."""
        return get_origin(self.type) is tuple

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of a value, or of the items of a list: (int, NoneType) for `int | None`."""
        inner = get_args(self.type)[0] if self.is_tuple else self.type
        return get_args(inner) if isinstance(inner, UnionType) else (get_origin(inner) or inner,)


def option(
    default: Any,
    help: str = "",
    *,
    metavar: str | None = None,
    flag: str | None = None,
    required: bool = False,
    free: bool = False,
) -> Any:
    """Field with a flag and a YAML key."""
    return _field(default, About(help, metavar, flag, required=required, free=free))


def key(default: Any, *, free: bool = False) -> Any:
    """Field with a YAML key, but no flag."""
    return _field(default, About(has_flag=False, free=free))


def argument(metavar: str, *, required: bool = True, default: Any = None, free: bool = False) -> Any:
    """Field given by its place on the command line, or in YAML."""
    return _field("" if required else default, About("", metavar, is_argument=True, required=required, free=free))


def own(default: Any) -> Any:
    """Field set by the program, once a run: neither flag nor YAML key."""
    return _field(default, About(is_own=True))


def part(kind: type) -> Any:
    """Field that holds further options."""
    return field(default_factory=kind)


def _field(default: Any, about: About) -> Any:
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={_KEY: about})
    return field(default=default, metadata={_KEY: about})


def leaves(kind: type) -> Iterator[Leaf]:
    """Yields the options of a dataclass, those of its parts in their place."""
    for item in fields(kind):
        if isinstance(item.type, type) and is_dataclass(item.type) and item.default_factory is not MISSING:
            yield from leaves(item.type)
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        leaf = Leaf(item.name, item.type, default, item.metadata.get(_KEY, About(has_flag=False)))
        if not leaf.about.is_own:
            yield leaf


def plain(options: Any) -> dict[str, Any]:
    """Returns the values by name, those of the parts in their place: the flat form of a record."""
    values: dict[str, Any] = {}
    for item in fields(options):
        value = getattr(options, item.name)
        if is_dataclass(value) and item.default_factory is not MISSING:
            values |= plain(value)
        elif not item.metadata.get(_KEY, About()).is_own:
            values[item.name] = value
    return values


def bound(options: Any) -> dict[str, Any]:
    """Returns the values that a resumed run must have too: `plain` without the free ones."""
    free = {leaf.name for leaf in leaves(type(options)) if leaf.about.free}
    return {name: value for name, value in plain(options).items() if name not in free}


def changed(options: Any) -> dict[str, Any]:
    """Returns the values by name that are not the defaults."""
    defaults = {leaf.name: leaf.default for leaf in leaves(type(options))}
    return {name: value for name, value in plain(options).items() if value != defaults[name]}


def from_plain(kind: type[Options], data: Mapping[str, Any]) -> Options:
    """Makes options from values by name. Raises `InputError` for unknown names and wrong types.

    Also for a value that is required and missing, and as the dataclasses do when they are made.
    """
    known = {leaf.name: leaf for leaf in leaves(kind)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise InputError(f"the options must have keys among {', '.join(known)}, got {shown(name)}")
        values[name] = _checked(known[name], value)
    for name, leaf in known.items():
        if leaf.about.required:
            check_given(values.get(name, leaf.default or None) not in (None, ()), name)
    return _made(kind, values)


def read_values(path: Path, name: str) -> dict[str, Any]:
    """Returns what a YAML file holds. Raises `InputError`, naming `name`, if not keys and values."""
    from mlpfusion.storage.yaml import read_yaml

    data = read_yaml(path, name)
    if not isinstance(data, dict):
        raise InputError(f"`{name}` must hold keys and values, got {shown(data)}")
    return data


def read_options(kind: type[Options], path: Path, name: str = "config") -> Options:
    """Makes options from a YAML file. Raises `InputError` as `read_values` and `from_plain` do."""
    return from_plain(kind, read_values(path, name))


def _made(kind: type[Options], values: Mapping[str, Any]) -> Options:
    arguments: dict[str, Any] = {}
    for item in fields(kind):  # pyright: ignore[reportArgumentType]
        if isinstance(item.type, type) and is_dataclass(item.type) and item.default_factory is not MISSING:
            arguments[item.name] = _made(item.type, values)
        elif item.name in values and not item.metadata.get(_KEY, About()).is_own:
            arguments[item.name] = values[item.name]
    return kind(**arguments)


def _checked(leaf: Leaf, value: Any) -> Any:
    if leaf.is_tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_of_kind(leaf, item) for item in items)
    return _of_kind(leaf, value)


def _of_kind(leaf: Leaf, value: Any) -> Any:
    from mlpfusion.storage.yaml import check_type

    if leaf.name == "layers" and type(value) is int:  # `layers: 3` in YAML
        return str(value)
    return check_type(f"`{leaf.name}`", value, leaf.kinds)
