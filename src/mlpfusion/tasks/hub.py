"""Texts through the `datasets` library: data sets of the Hub, and Parquet files. The library is optional."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError

PREFIX = "hub:"


def is_data_set(file: str) -> bool:
    """Whether `file` is read by `datasets`: `hub:owner/name[[:config]:split]`, or a .parquet file."""
    return file.startswith(PREFIX) or file.endswith(".parquet")


def read_data_set(file: str, column: str | None) -> list[str]:
    """The texts in `column`, empty ones left out. The split is `train` unless one is named.

    Raises `InputError` if `datasets` is not installed, the data set cannot be read, or the column is not one of texts.
    """
    if column is None:
        raise InputError(f"`column` must name the column of {file} that holds the text, got none")
    path, config, split, options = _location(file)
    if find_spec("datasets") is None:
        raise InputError(f"`data` must be text or JSONL unless `pip install datasets` is done, got {file}")
    datasets: Any = import_module("datasets")
    try:
        rows: Any = datasets.load_dataset(path, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"`data` must be a data set that can be read, got {file}: {reason}") from error
    texts: list[Any] = list(rows[column]) if column in rows.column_names else [None]
    if not all(isinstance(text, str) for text in texts):
        known = ", ".join(rows.column_names)
        raise InputError(f"`column` must be a text column of {file}, one of {known}, got {column!r}")
    return [text.strip() for text in texts if text.strip()]


def _location(file: str) -> tuple[str, str | None, str, dict[str, Any]]:
    """What `load_dataset` is called with: path, config, split, further arguments."""
    if not file.startswith(PREFIX):
        if not Path(file).is_file():
            raise InputError(f"`data` must be a readable file, got {file}")
        return "parquet", None, "train", {"data_files": file}
    path, *parts = file.removeprefix(PREFIX).split(":")
    if not path or not all(parts) or len(parts) > 2:
        form = "hub:owner/name, hub:owner/name:split or hub:owner/name:config:split"
        raise InputError(f"`data` must be a file or {form}, got {file}")
    return path, parts[0] if len(parts) == 2 else None, parts[-1] if parts else "train", {}
