"""Texts through the `datasets` library: data sets of the Hub, and Parquet files. The library is optional."""

from importlib import import_module
from pathlib import Path
from typing import Any

from mlpfusion.data.files.lines import check_regular
from mlpfusion.errors import InputError, one_line

PREFIX = "hub:"
LOCAL = "a text, JSON, CSV or TSV file"


def is_data_set(file: str) -> bool:
    """Whether `file` is read by `datasets`: `hub:owner/name[[:config]:split]`, or a .parquet file."""
    return file.startswith(PREFIX) or file.lower().endswith(".parquet")


def file_rows(file: str, field: str) -> Any:
    """The rows of a data set, a `datasets.Dataset`. The split is `train` unless one is named.

    Raises `InputError` as `load_data_set` does.
    """
    path, config, split, options = _location(file, field)
    return load_data_set(path, config, split, field=field, local=LOCAL, name=file, **options)


def column_texts(file: str, column: str | None, field: str) -> list[str]:
    """The texts in one column of a data set. Raises `InputError` as `file_rows` does, and if it is none of texts."""
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
    """One split, a `datasets.Dataset`, downloaded or cached; `options` are further ones of `datasets.load_dataset`.

    Raises `InputError`, which names `field`, what it may be without the library (`local`) and the data set (`name`), if
    the library is not installed, there is no such data set, or no way to reach it.
    """
    try:
        datasets: Any = import_module("datasets")
    except ImportError as error:
        cure = "`pip install 'mlpfusion[data]'`"
        raise InputError(f"`{field}` must be {local} unless {cure} is done, got {name}") from error
    try:
        return datasets.load_dataset(path, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error)
        raise InputError(f"`{field}` must be {local}, or a data set that can be read, got {name}: {reason}") from error


def _location(file: str, field: str) -> tuple[str, str | None, str, dict[str, Any]]:
    """What `load_dataset` is called with: path, config, split, further arguments."""
    if not file.startswith(PREFIX):
        check_regular(Path(file), field)
        return "parquet", None, "train", {"data_files": file}
    path, *parts = file.removeprefix(PREFIX).split(":")
    if not path or not all(parts) or len(parts) > 2:
        form = "hub:owner/name, hub:owner/name:split or hub:owner/name:config:split"
        raise InputError(f"`{field}` must be a file or {form}, got {file}")
    return path, parts[0] if len(parts) == 2 else None, parts[-1] if parts else "train", {}
