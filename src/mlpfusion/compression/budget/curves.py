"""Measures the error of a block by its width: inertia without data, the model's last hidden state with data."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import check_finite
from mlpfusion.cluster import kmeans
from mlpfusion.compression.budget.allocation import Curve
from mlpfusion.errors import InputError
from mlpfusion.methods.calibrated.ntk_match import NTKMatch, by_energy
from mlpfusion.methods.calibrated.refit import refit_down
from mlpfusion.mlp import MLP, forward, in_compute_dtype, neurons, on_device, select_neurons
from mlpfusion.sites.sites import Site, read_mlp
from mlpfusion.sites.traces import last_hidden_tokens, replaced_block

NUM_WIDTHS = 9
_SMALLEST_SHARE = 1 / 64


def grid(width: int, smallest: int) -> list[int]:
    """Returns up to `NUM_WIDTHS` widths at equal ratios, from a 64th of `width` up, and `smallest`."""
    start = min(max(smallest, round(_SMALLEST_SHARE * width)), width)
    return sorted({min(smallest, width), *np.geomspace(start, width, NUM_WIDTHS).round().astype(int).tolist()})


def inertia_curve(mlp: MLP, widths: Sequence[int], generator: torch.Generator) -> Curve:
    """Measures the share of the k-means inertia left by as many clusters; 0 at full width.

    The points are the neurons as in MLP Fusion. Raises `InputError` for NaN or Inf in a weight.
    """
    rows = neurons(mlp)
    check_finite(rows, "the weights", " in an MLP")
    return Curve(tuple(widths), tuple(kmeans(rows, width, generator=generator).inertia_ratio for width in widths))


@torch.no_grad()
def refit_curve(
    model: PreTrainedModel,
    site: Site,
    inputs: Float[Tensor, "tokens hidden"],
    widths: Sequence[int],
    probe: Sequence[Batch],
    device: torch.device,
) -> Curve:
    """Measures the squared error of the last hidden state with only this block narrower; 0 at full width.

    The narrow block has the neurons of highest energy and a refit second map, both from `inputs`. Error: mean length of
    the change over the visible tokens of `probe`, over the mean length. Squared, because the errors of several blocks
    are nearly orthogonal, so that their squares add up. `model` must be in eval mode; one forward pass a width.
    """
    mlp = on_device(in_compute_dtype(read_mlp(model, site)), device)
    inputs = inputs.to(mlp.up)
    targets, order = forward(mlp, inputs), by_energy(mlp, inputs)
    before = torch.cat([last_hidden_tokens(model, batch) for batch in probe]).double()
    errors = []
    for width in widths[:-1]:
        chosen = select_neurons(mlp, order[:width].sort().values)
        small = on_device(refit_down(chosen, inputs, targets, NTKMatch().ridge), model.device)
        with replaced_block(model, site, small):
            after = torch.cat([last_hidden_tokens(model, batch) for batch in probe]).double()
        errors.append(float((after - before).norm(dim=1).mean() / before.norm(dim=1).mean()) ** 2)
    if not np.isfinite(errors).all():
        raise InputError(f"`calibration` must be finite, it gives NaN or Inf in the last hidden states by {site.path}")
    return Curve(tuple(widths), (*errors, 0.0))
