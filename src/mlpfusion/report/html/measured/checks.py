"""Checks that the readers of all records share."""

from collections.abc import Mapping, Sized

from mlpfusion.errors import InputError, shown


def check_some(entries: Sized, name: str, where: str) -> None:
    """Raises `InputError` for a list without entries."""
    if not entries:
        raise InputError(f"{where} must have at least one entry in `{name}`, got none")


def check_versions(versions: Mapping[str, str], where: str) -> None:
    """Raises `InputError` unless the version of the package is there."""
    if "mlpfusion" not in versions:
        raise InputError(f"{where} must name the version of mlpfusion in `versions`, got {shown(versions)}")
