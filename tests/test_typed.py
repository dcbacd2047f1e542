"""JSON data as dataclasses: what fits is taken as it is, what does not is named by its place."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from mlpfusion.errors import InputError
from mlpfusion.storage.typed import typed


@dataclass(frozen=True)
class Inner:
    x: float
    pair: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: tuple[Inner, ...]
    numbers: dict[str, float]
    rank: int | dict[str, int] | None
    free: Any = None
    flag: bool = False


DATA: dict[str, Any] = {
    "inner": {"x": 1},
    "many": [{"x": 0.5, "pair": [3, "a"]}],
    "numbers": {"a": 1.5, "is": True},
    "rank": {"up": 3},
}


def test_what_was_written_is_read():
    read = typed(Outer, DATA, "it")
    assert read == Outer(Inner(1), (Inner(0.5, (3, "a")),), {"a": 1.5, "is": True}, {"up": 3})
    assert typed(Outer, json.loads(json.dumps(asdict(read))), "it") == read
    assert typed(Outer, DATA | {"rank": None, "free": [{}]}, "it").free == [{}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inner": 3}, "it must have an object for `inner`, got 3"),
        ({"inner": {}}, "it must have the entry `inner.x`, which is missing"),
        ({"many": {}}, "it must have a list for `many`, got {}"),
        ({"many": [{"x": 1}, {"x": "1"}]}, "it must have a number for `many[1].x`, got '1'"),
        ({"many": [{"x": 1, "pair": [1]}]}, "it must have a list of 2 for `many[0].pair`, got [1]"),
        ({"many": [{"x": 1, "pair": [1.5, "a"]}]}, "it must have a whole number for `many[0].pair[0]`, got 1.5"),
        ({"numbers": {"a": None}}, "it must have a number for `numbers[a]`, got None"),
        ({"numbers": []}, "it must have an object for `numbers`, got []"),
        ({"rank": "3"}, "it must have an object for `rank`, got '3'"),
        ({"flag": 1}, "it must have true or false for `flag`, got 1"),
        ({"other": 1}, "it must have entries among inner, many, numbers, rank, free, flag, got 'other'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(changed, message):
    with pytest.raises(InputError) as error:
        typed(Outer, DATA | changed, "it")
    assert str(error.value) == message


def test_a_part_may_stand_among_other_entries():
    assert typed(Inner, {"x": 1, "y": 2}, "it", in_part=True) == Inner(1)


def test_an_entry_that_is_missing_is_named():
    with pytest.raises(InputError, match="it must have the entry `rank`, which is missing"):
        typed(Outer, {name: value for name, value in DATA.items() if name != "rank"}, "it")
