"""Needs of a config beside the weights: batches of inputs, gradients, and the head that weights tokens."""

from typing import Any

from mlpfusion.methods.block import CalibrationNeeds, CalibrationScalar
from mlpfusion.methods.table import METHODS


def needs_batches(config: Any) -> bool:
    """Whether the method needs batches; False if it sees no inputs, or draws them from the norms.

    >>> from mlpfusion import Fusion, NTKMatch
    >>> needs_batches(Fusion()), needs_batches(NTKMatch()), needs_batches(NTKMatch(data_free=True))
    (False, True, False)
    """
    return _needs(config).batches


def head_pooling(config: Any) -> str:
    """Returns the pooling of the head that weights the tokens; `mean` weights all alike.

    >>> from mlpfusion import NTKMatch
    >>> head_pooling(NTKMatch(pooling="first"))
    'first'
    """
    return _needs(config).pooling


def needs_gradients(config: Any) -> bool:
    """Whether the method needs gradients at the outputs of the blocks.

    >>> from mlpfusion import NTKMatch
    >>> needs_gradients(NTKMatch()), needs_gradients(NTKMatch(match="none"))
    (True, False)
    """
    return _needs(config).gradients


def gradient_scalar(config: Any) -> CalibrationScalar:
    """Returns the f whose gradients the method needs.

    >>> from mlpfusion import NIRVANA, NTKMatch
    >>> gradient_scalar(NTKMatch()), gradient_scalar(NIRVANA())
    ('head', 'peak')
    """
    return _needs(config).scalar


def _needs(config: Any) -> CalibrationNeeds:
    return config.needs() if METHODS[type(config)].sees == "inputs" else CalibrationNeeds(batches=False)
