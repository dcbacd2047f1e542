"""Needs of a config beside the weights: batches of inputs, gradients of which f, the head that weights tokens."""

from typing import Any

from mlpfusion.methods.block import CalibrationNeeds
from mlpfusion.methods.table import METHODS


def needs_batches(config: Any) -> bool:
    """Whether the method is calibrated on batches of inputs.

    >>> from mlpfusion import Fusion, NTKMatch
    >>> needs_batches(Fusion()), needs_batches(NTKMatch())
    (False, True)
    """
    return METHODS[type(config)].sees == "inputs"


def calibration_needs(config: Any) -> CalibrationNeeds:
    """What a calibrated method needs beside the batches.

    >>> from mlpfusion import NIRVANA
    >>> calibration_needs(NIRVANA())
    CalibrationNeeds(pooling='mean', gradients=True, scalar='peak')
    """
    return config.needs()
