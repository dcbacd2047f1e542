"""JSON data as frozen dataclasses, checked field by field."""

from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from mlpfusion.errors import InputError, shown

T = TypeVar("T")
_LARGEST = 2**63  # of a whole number: above any count, and still a float
# Type -> what JSON may have for it, and its name in messages.
_PLAIN = {
    str: ((str,), "text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


def typed(kind: type[T], data: Any, where: str, *, in_part: bool = False) -> T:
    """Makes the dataclass `kind` of JSON data.

    Lists become tuples; a missing entry gets the default of its field. Raises `InputError`, with `where` and the place
    of the entry, for what does not fit, and for unknown entries unless the data is read `in_part`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     names: tuple[str, ...] = ()
    >>> typed(Point, {"x": 2, "names": ["a"]}, "the file")
    Point(x=2, names=('a',))
    """
    return _Reader(where, in_part).made(kind, data, "")


class _Reader:
    """One reading: what messages call the data, and whether unknown entries may be there."""

    def __init__(self, where: str, in_part: bool):
        self._where, self._in_part = where, in_part

    def made(self, kind: Any, data: Any, place: str) -> Any:
        if not isinstance(data, dict):
            raise self._error(place, "an object", data)
        known = {item.name: item for item in fields(kind)}
        if not self._in_part and (unknown := [name for name in data if name not in known]):
            raise InputError(f"{self._where} must have entries among {', '.join(known)}, got {shown(unknown[0])}")
        values = {}
        for name, item in known.items():
            inner = f"{place}.{name}" if place else name
            if name in data:
                values[name] = self._value(item.type, data[name], inner)
            elif item.default is MISSING and item.default_factory is MISSING:
                raise InputError(f"{self._where} must have the entry `{inner}`, which is missing")
        return kind(**values)

    def _value(self, hint: Any, value: Any, place: str) -> Any:
        outer, inner = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if is_dataclass(hint):
            return self.made(hint, value, place)
        if outer is UnionType:
            return self._one_of(inner, value, place)
        if outer is tuple:
            return self._items(inner, value, place)
        if outer is dict:
            if not isinstance(value, dict):
                raise self._error(place, "an object", value)
            return {name: self._value(inner[1], one, f"{place}[{name}]") for name, one in value.items()}
        kinds, name = _PLAIN[hint]
        if not isinstance(value, kinds) or (isinstance(value, int) and abs(value) > _LARGEST):
            raise self._error(place, name, value)
        return value

    def _one_of(self, kinds: tuple[Any, ...], value: Any, place: str) -> Any:
        """The value as the first of the kinds that fits."""
        if value is None and NoneType in kinds:
            return None
        *first, last = [kind for kind in kinds if kind is not NoneType]
        for kind in first:
            try:
                return self._value(kind, value, place)
            except InputError:
                continue
        return self._value(last, value, place)

    def _items(self, kinds: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._error(place, "a list", value)
        each = [kinds[0]] * len(value) if kinds[1:] == (...,) else kinds
        if len(each) != len(value):
            raise self._error(place, f"a list of {len(each)}", value)
        pairs = enumerate(zip(each, value, strict=True))
        return tuple(self._value(kind, one, f"{place}[{index}]") for index, (kind, one) in pairs)

    def _error(self, place: str, wanted: str, value: Any) -> InputError:
        what = f"`{place}`" if place else "its content"
        return InputError(f"{self._where} must have {wanted} for {what}, got {shown(value)}")
