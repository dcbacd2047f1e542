"""What a config needs beside the weights: batches of inputs, and the head that weights their tokens."""

from typing import Any

from mlpfusion.methods.block import CalibrationNeeds
from mlpfusion.methods.table import METHODS


def needs_batches(config: Any) -> bool:
    """Whether the method is calibrated on batches; False where it sees no inputs, or draws them from the norms.

    >>> from mlpfusion import Fusion, NTKMatch
    >>> needs_batches(Fusion()), needs_batches(NTKMatch()), needs_batches(NTKMatch(data_free=True))
    (False, True, False)
    """
    return _needs(config).batches


def head_pooling(config: Any) -> str:
    """What the head that weights the tokens reads; `mean` weights all alike.

    >>> from mlpfusion import NTKMatch
    >>> head_pooling(NTKMatch(pooling="first"))
    'first'
    """
    return _needs(config).pooling


def _needs(config: Any) -> CalibrationNeeds:
    return config.needs() if METHODS[type(config)].sees == "inputs" else CalibrationNeeds(batches=False)
