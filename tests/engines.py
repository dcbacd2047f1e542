"""Engines that not every environment has."""

import pytest

from mlpfusion.export.table import TARGETS


def needs(target):
    """Skips where a package of the target is missing."""
    extra = TARGETS[target].needs
    assert extra is not None
    if extra.missing():
        pytest.skip(f"needs {extra.missing()}")
