"""Needs of a config beside the weights: batches of inputs, gradients of which f, the head that weights tokens."""

from typing import Any

from mlpfusion.methods.block import CalibrationNeeds
from mlpfusion.methods.table import METHODS


def needs_batches(config: Any) -> bool:
    """Whether the method needs batches; False if it sees no inputs, or draws them from the norms.

    >>> from mlpfusion import Fusion, NTKMatch
    >>> needs_batches(Fusion()), needs_batches(NTKMatch()), needs_batches(NTKMatch(data_free=True))
    (False, True, False)
    """
    return calibration_needs(config).batches


def calibration_needs(config: Any) -> CalibrationNeeds:
    """Returns all needs of the method beside the weights.

    >>> from mlpfusion import NIRVANA
    >>> calibration_needs(NIRVANA())
    CalibrationNeeds(batches=True, pooling='mean', gradients=True, scalar='peak')
    """
    return config.needs() if METHODS[type(config)].sees == "inputs" else CalibrationNeeds(batches=False)
