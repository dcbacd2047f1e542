"""The folder in `MLPFUSION_DATA` that holds the files of a task."""

import os
from pathlib import Path

from mlpfusion.checks import user_path
from mlpfusion.errors import InputError

DATA_VARIABLE = "MLPFUSION_DATA"
# A checkout of the source may have the data beside it. An installed package reads only folders named by its user.
_CHECKOUT = Path(__file__).parents[4]


def data_folder(name: str) -> Path | None:
    """Folder `name` of the data, such as `glue/RTE`; None for the Hub.

    Without the variable, a checkout of the source looks into `../shared/data`; an empty variable means the Hub. Raises
    `InputError` if the variable names a folder without `name`.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named is None and (_CHECKOUT / "pyproject.toml").is_file():
        folder = _CHECKOUT.parent / "shared" / "data" / name
        return folder if folder.is_dir() else None
    if not named:
        return None
    folder = user_path(DATA_VARIABLE, named) / name
    if not folder.is_dir():
        raise InputError(f"`{DATA_VARIABLE}` must name a folder that holds {name}, got {named}")
    return folder
