"""Reads Hub data sets and Parquet files by the optional `datasets` library."""

from importlib import import_module
from pathlib import Path
from typing import Any

from mlpfusion.data.files.lines import check_regular
from mlpfusion.errors import InputError, one_line
from mlpfusion.extras import DATA_SETS

PREFIX = "hub:"
LOCAL = "a text, JSON, CSV or TSV file"


def is_data_set(file: str) -> bool:
    """True for `hub:owner/name[[:config]:split]` and .parquet files.

    >>> is_data_set("hub:nyu-mll/glue:rte:train"), is_data_set("texts.txt")
    (True, False)
    """
    return file.startswith(PREFIX) or file.lower().endswith(".parquet")


def file_rows(file: str, field: str) -> Any:
    """Loads one split (default `train`) as a `datasets.Dataset`.

    Raises `InputError` if `datasets` is not installed, or the data set cannot be read.
    """
    path, config, split, options = _location(file, field)
    return load_data_set(path, config, split, field=field, local=LOCAL, name=file, **options)


def column_texts(file: str, column: str | None, field: str) -> list[str]:
    """Texts in one column of a data set.

    Raises `InputError` without a `column`, and for a column of anything but text.
    """
    if column is None:
        raise InputError(f"`column` must name the column of {file} that holds the text, got none")
    rows = file_rows(file, field)
    texts: list[Any] = list(rows[column]) if column in rows.column_names else [None]
    if not all(isinstance(text, str) for text in texts):
        known = ", ".join(rows.column_names)
        raise InputError(f"`column` must be a text column of {file}, one of {known}, got {column!r}")
    return texts


def load_data_set(
    path: str, config: str | None, split: str, *, field: str, local: str, name: str, **options: Any
) -> Any:
    """Downloads one split, or reads it from the cache, as a `datasets.Dataset`.

    `options` are further arguments of `datasets.load_dataset`. Raises `InputError` if the library
    is not installed, or the data set is unknown or out of reach; the message names `field`, the
    alternatives without the library (`local`) and the data set (`name`).
    """
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        raise InputError(f"`{field}` must be {local} unless `{DATA_SETS.install}` is done, got {name}") from error
    try:
        return datasets.load_dataset(path, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error)
        raise InputError(f"`{field}` must be {local}, or a data set that can be read, got {name}: {reason}") from error


def _location(file: str, field: str) -> tuple[str, str | None, str, dict[str, Any]]:
    """Arguments of `datasets.load_dataset`: path, config, split, further ones."""
    if not file.startswith(PREFIX):
        check_regular(Path(file), field)
        return "parquet", None, "train", {"data_files": file}
    path, *parts = file.removeprefix(PREFIX).split(":")
    if not path or not all(parts) or len(parts) > 2:
        form = "hub:owner/name, hub:owner/name:split or hub:owner/name:config:split"
        raise InputError(f"`{field}` must be a file or {form}, got {file}")
    return path, parts[0] if len(parts) == 2 else None, parts[-1] if parts else "train", {}
