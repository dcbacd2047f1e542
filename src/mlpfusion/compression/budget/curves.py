"""Measures the error of a block by its width: inertia without data, the model's last hidden state with data."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checks import check_finite
from mlpfusion.cluster import kmeans
from mlpfusion.compression.budget.allocation import Curve
from mlpfusion.errors import InputError
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.ntk_match import NTKMatch, by_energy
from mlpfusion.methods.calibrated.refit import Moments, moments, refit_part
from mlpfusion.mlp import MLP, in_compute_dtype, neurons, on_device
from mlpfusion.sites.sites import Site, read_mlp
from mlpfusion.sites.traces import last_hidden_tokens, replaced_block, replaced_mixture

NUM_WIDTHS = 9
_SMALLEST_SHARE = 1 / 64
# On which the error of the model is taken, a forward pass a layer and width; the refit is on all.
_PROBE_SAMPLES, _PROBE_TOKENS = 64, 1024


def grid(width: int, smallest: int) -> list[int]:
    """Returns up to `NUM_WIDTHS` widths at equal ratios, from a 64th of `width` up, and `smallest`."""
    start = min(max(smallest, round(_SMALLEST_SHARE * width)), width)
    return sorted({min(smallest, width), *np.geomspace(start, width, NUM_WIDTHS).round().astype(int).tolist()})


def inertia_curve(blocks: Iterable[tuple[MLP, torch.Generator]], widths: Sequence[int]) -> Curve:
    """Measures the share of the k-means inertia left by as many clusters in every MLP; 0 at full width.

    That of several MLPs, the experts of one mixture, is taken together. The points are the neurons as in MLP Fusion.
    Raises `InputError` for NaN or Inf in a weight.
    """
    left, total = np.zeros(len(widths)), 0.0
    for mlp, generator in blocks:
        rows = neurons(mlp)
        check_finite(rows, "the weights", " in an MLP")
        found = [kmeans(rows, width, generator=generator) for width in widths]
        left += [one.inertia for one in found]
        total += found[0].total_inertia
    return Curve(tuple(widths), tuple((left / total if total > 0 else left).tolist()))


@dataclass(frozen=True)
class Probe:
    """Texts on which a changed model is compared with itself before, by the last hidden states of visible tokens."""

    batches: Sequence[Batch]
    before: Float64[Tensor, "tokens hidden"]

    @classmethod
    def of(cls, model: PreTrainedModel, batches: Sequence[Batch]) -> "Probe":
        """Runs `model` on some samples of `batches`."""
        some = probe_batches(batches)
        return cls(some, _hidden(model, some))

    def error(self, model: PreTrainedModel) -> float:
        """Mean length of the change, over the mean length."""
        change = _hidden(model, self.batches) - self.before
        return float(change.norm(dim=1).mean() / self.before.norm(dim=1).mean())


def probe_batches(batches: Sequence[Batch]) -> list[Batch]:
    """Picks samples at equal distances: at most `_PROBE_SAMPLES`, and about `_PROBE_TOKENS` tokens, one at least."""
    sizes = [len(next(iter(batch.values()))) for batch in batches]
    tokens = sum(batch["input_ids"].numel() for batch in batches if "input_ids" in batch)
    step = max(1, math.ceil(sum(sizes) / _PROBE_SAMPLES), tokens // _PROBE_TOKENS)
    step = min(step, sum(sizes))
    chosen, start = [], step // 2
    for batch, size in zip(batches, sizes, strict=True):
        if start < size:
            chosen.append({name: value[start::step] for name, value in batch.items()})
            start += -(-(size - start) // step) * step
        start -= size
    return chosen


def _hidden(model: PreTrainedModel, batches: Sequence[Batch]) -> Float64[Tensor, "tokens hidden"]:
    return torch.cat([last_hidden_tokens(model, batch) for batch in batches]).double()


@torch.no_grad()
def refit_curve(
    model: PreTrainedModel,
    sites: Sequence[Site],
    calibrations: Sequence[Calibration | None],
    widths: Sequence[int],
    probe: Probe,
    device: torch.device,
) -> Curve:
    """Measures the squared error of the last hidden state with only this block narrower; 0 at full width.

    `sites` are one MLP, or all experts of a mixture. The narrow block has the neurons of highest energy and a refit
    second map, both from its calibration; an expert that no token reaches stays whole. Error: mean length of the change
    over the visible tokens of `probe`, over the mean length. Squared, because the errors of several blocks are nearly
    orthogonal, so that their squares add up. `model` must be in eval mode; one forward pass a width.
    """
    members, errors = [], []
    for site, seen in zip(sites, calibrations, strict=True):
        mlp = on_device(in_compute_dtype(read_mlp(model, site)), device)
        members.append(
            _Refitted(mlp, None if seen is None else moments(mlp, seen.trace.inputs.to(mlp.up), seen.weights))
        )
    for width in widths[:-1]:
        small = [on_device(one.at(width), model.device) for one in members]
        with _replaced(model, sites[0], small):
            errors.append(probe.error(model) ** 2)
    if not np.isfinite(errors).all():
        where = sites[0].block_path
        raise InputError(f"`calibration` must be finite, it gives NaN or Inf in the last hidden states by {where}")
    return Curve(tuple(widths), (*errors, 0.0))


@dataclass(frozen=True)
class _Refitted:
    """One MLP and the moments of its neurons, None where nothing enters it."""

    mlp: MLP
    found: Moments | None

    @cached_property
    def order(self) -> Tensor:
        assert self.found is not None
        return by_energy(self.mlp, self.found)

    def at(self, width: int) -> MLP:
        """The MLP refitted with so many neurons."""
        if self.found is None:
            return self.mlp
        return refit_part(self.mlp, self.order[:width].sort().values, self.found, NTKMatch().ridge)


def _replaced(model: PreTrainedModel, site: Site, mlps: Sequence[MLP]) -> AbstractContextManager[None]:
    """`model` with `mlps` in the place of the block that `site` is in."""
    if site.mixture is not None:
        return replaced_mixture(model, site.mixture, mlps)
    (mlp,) = mlps
    return replaced_block(model, site, mlp)
