"""Plain data from YAML, with the numbers of YAML 1.2: `1e-4` is a number, in PyYAML a text.

PyYAML only splits the text into events. The data is built here: text, numbers, bools, null, lists
and mappings of these. No tags, anchors or aliases and no great depth: no file costs more than its
length.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from yaml import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    SafeLoader,
    ScalarEvent,
    YAMLError,
    parse,
)

from mlpfusion.errors import InputError, one_line, shown

_MAX_FRONT_MATTER = 2**21  # characters; the scores in a card of the Hub can be a million long
# Far above any config of ours, and far below what makes PyYAML, recursion or int() slow.
MAX_BYTES, MAX_DEPTH, MAX_DIGITS = 2**16, 16, 100
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **{form: True for word in ("true", "yes", "on") for form in (word, word.title(), word.upper())},
    **{form: False for word in ("false", "no", "off") for form in (word, word.title(), word.upper())},
}
_WHOLE = re.compile(r"[-+]?[0-9]+")
_FRACTION = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(path: Path, field: str) -> Any:
    """Reads the plain data in a YAML file. Raises `InputError`, with `field` in the message.

    >>> write_text = (folder / "a.yaml").write_text("learning_rate: 1e-4")
    >>> read_yaml(folder / "a.yaml", "config")
    {'learning_rate': 0.0001}
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is longer than {MAX_BYTES:,} bytes")
        return _load(content.decode("utf-8-sig"))
    except (OSError, YAMLError, ValueError) as error:
        raise InputError(f"`{field}` must be a readable YAML file, got {path}: {one_line(error)}") from error


def read_front_matter(path: Path) -> dict[str, Any]:
    r"""Reads the YAML between two lines of dashes at the head of a Markdown file, or {}.

    `model-index` is left out: its scores can be longer than all that is read here. Warns if the
    text is no YAML.

    >>> write_text = (folder / "README.md").write_text("---\nlicense: mit\n---\n# Model")
    >>> read_front_matter(folder / "README.md")
    {'license': 'mit'}
    """
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as opened:
        head = opened.read(_MAX_FRONT_MATTER)
    match = re.match(r"\ufeff?---[ ]*\n(.*?)^---[ ]*$", head, re.DOTALL | re.MULTILINE)
    text = re.sub(r"^model-index:.*\n([ -].*\n)*", "", match[1], flags=re.MULTILINE) if match else ""
    try:
        data = _load(text)
    except (YAMLError, ValueError) as error:
        warnings.warn(f"{path} has no readable front matter, its licence is lost: {one_line(error)}", stacklevel=2)
        return {}
    return data if isinstance(data, dict) else {}


def parse_option(text: str) -> tuple[str, Any]:
    """Parses `NAME=VALUE`, the value as YAML. Raises `InputError` for anything else.

    >>> parse_option("ridge=1e-2")
    ('ridge', 0.01)
    """
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"an option must be NAME=VALUE, got {shown(text)}")
    try:
        return name, _load(value)
    except (YAMLError, ValueError) as error:
        raise InputError(f"the value of option {name} must be YAML, got {shown(value)}: {one_line(error)}") from error


def check_type(field: str, value: Any, kinds: Sequence[type]) -> Any:
    """Returns `value` if it is of one of `kinds`. A whole number counts as a float.

    Raises `InputError` for another type; `field` starts the message.

    >>> check_type("`ridge`", 1, [float])
    1.0
    """
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        names = " or ".join("nothing" if kind is NoneType else kind.__name__ for kind in kinds)
        raise InputError(f"{field} must be of type {names}, got {shown(value)}")
    return value


def _load(text: str) -> Any:
    """Parses one document. Raises `YAMLError` or `ValueError` for anything else."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it is longer than {MAX_BYTES:,} bytes")
    root: list[Any] = []
    open_collections: list[list[Any]] = [root]  # items of a list; keys and values of a mapping in turn
    starts: list[Event] = []
    num_documents = 0
    for event in parse(text, SafeLoader):
        _check_event(event, len(open_collections))
        num_documents += isinstance(event, DocumentStartEvent)
        if isinstance(event, ScalarEvent):
            open_collections[-1].append(_scalar(event))
        elif isinstance(event, CollectionStartEvent):
            starts.append(event)
            open_collections.append([])
        elif isinstance(event, CollectionEndEvent):
            items = open_collections.pop()
            collection = _mapping(items) if isinstance(starts.pop(), MappingStartEvent) else items
            open_collections[-1].append(collection)
    if num_documents > 1:
        raise ValueError("it must hold one document")
    return root[0] if root else None


def _check_event(event: Event, depth: int) -> None:
    where = "" if event.start_mark is None else f" (line {event.start_mark.line + 1})"
    if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
        raise ValueError(f"it must have no anchors and aliases{where}")
    if isinstance(event, ScalarEvent | CollectionStartEvent) and event.tag is not None:
        raise ValueError(f"it must have no tags, got {event.tag}{where}")
    if depth > MAX_DEPTH:
        raise ValueError(f"it must be at most {MAX_DEPTH} levels deep{where}")


def _scalar(event: ScalarEvent) -> Any:
    text = event.value
    if not event.implicit[0]:  # in quotes
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a number must have at most {MAX_DIGITS} digits, got {len(text)}")
        return int(text)
    if _FRACTION.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _mapping(items: list[Any]) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, list | dict):
            raise ValueError(f"a key must be a word, got {shown(key)}")
        if key in mapping:
            raise ValueError(f"a key must stand there once, {shown(key)} stands there twice")
        mapping[key] = value
    return mapping
