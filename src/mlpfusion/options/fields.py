"""The fields of a frozen dataclass read from YAML and from flags, each checked for its type."""

from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from mlpfusion.errors import InputError, shown
from mlpfusion.storage.yaml import check_type, read_yaml

# A frozen dataclass whose fields can be written in YAML: numbers, text, yes or no, and tuples of these.
Fields = TypeVar("Fields", bound=Any)


def read_recipe(path: Path, into: Fields) -> Fields:
    """`into` with the fields in a YAML file. Raises `InputError` for an unknown key, a wrong type, or no YAML."""
    data = read_yaml(path, "recipe")
    if not isinstance(data, dict):
        raise InputError(f"`recipe` must hold keys and values, got {shown(data)}")
    return with_fields(into, data)


def read_job(empty: Fields, recipe: str | None, flags: dict[str, Any]) -> Fields:
    """`empty` with the fields of the YAML file `recipe`, if one is named, and over them the flags that were given.

    Raises `InputError` as `read_recipe` does.
    """
    job = empty if recipe is None else read_recipe(Path(recipe), empty)
    return with_fields(job, {name: value for name, value in flags.items() if value is not None and value is not False})


def with_fields(recipe: Fields, data: dict[str, Any]) -> Fields:
    """`recipe`, a frozen dataclass, with some fields replaced. Raises `InputError` for unknown keys and wrong types."""
    known = {item.name: item.type for item in fields(recipe)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise InputError(f"a recipe must have keys among {', '.join(known)}, got {shown(name)}")
        values[name] = _checked(name, value, known[name])
    return replace(recipe, **values)


def _checked(name: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(name, item, get_args(wanted)[0]) for item in items)
    kinds = get_args(wanted) if isinstance(wanted, UnionType) else (get_origin(wanted) or wanted,)
    if name == "layers" and type(value) is int:  # `layers: 3` in YAML
        return str(value)
    return check_type(f"`{name}`", value, kinds)
