"""What a calibrated method gets of one expert, from the record of its mixture."""

from jaxtyping import Float
from torch import Tensor

from mlpfusion.compression.settings import CalibrationSize
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.sites.mixtures.routing import RoutedTokens
from mlpfusion.sites.sites import Site


def expert_calibration(
    tokens: RoutedTokens, site: Site, row_weights: Float[Tensor, " rows"] | None = None
) -> Calibration | None:
    """The tokens that reach one expert, weighted as its router does; None if there are none.

    An error of the expert enters the output of the mixture times the weight of the router, or as it is where that
    multiplies what enters the expert. `row_weights`, by which errors of the mixture count, multiply that.
    """
    assert site.expert is not None
    found = tokens.trace_of(site.expert)
    if found is None:
        return None
    trace, weights = found
    if row_weights is not None:
        weights = weights * row_weights[tokens.routing.of_expert(site.expert)[0]].to(weights.dtype)
    return Calibration(trace, weights=weights)


def routed_size(tokens: RoutedTokens) -> CalibrationSize:
    """How much enters the mixture: its samples and tokens."""
    return CalibrationSize(len(tokens.lengths), int(tokens.lengths.sum()))
