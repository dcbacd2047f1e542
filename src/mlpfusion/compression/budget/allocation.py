"""Allocates widths under a common budget: lower convex hulls of the error curves, steepest step first."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator


@dataclass(frozen=True)
class Curve:
    """Error of one block at a few widths.

    `widths` ascend, the last one is the width of the block. The errors of several blocks are summed, so all need one
    unit. Raises `ValueError` for widths out of order, and for errors of another number or not finite.
    """

    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.widths or self.widths[0] < 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"`widths` must ascend from 1 or more, got {self.widths}")
        if len(self.errors) != len(self.widths) or not np.isfinite(self.errors).all():
            raise ValueError(f"`errors` must be {len(self.widths)} finite numbers, got {self.errors}")

    def at(self, widths: Sequence[int]) -> Float[np.ndarray, " widths"]:
        """Interpolates the error at `widths`: monotone cubic over the logarithm of the width.

        Where a measured error rises with the width, the smaller one before it holds.
        """
        errors = np.minimum.accumulate(self.errors)
        if len(errors) == 1:
            return np.full(len(widths), errors[0])
        inside = np.clip(widths, self.widths[0], self.widths[-1])
        return PchipInterpolator(np.log(self.widths), errors)(np.log(inside))


def possible_widths(width: int, step: int) -> range | list[int]:
    """Returns the multiples of `step` up to `width`, and `width` itself.

    >>> possible_widths(10, 4)
    [4, 8, 10]
    """
    multiples = range(step, width + 1, step)
    return multiples if multiples and multiples[-1] == width else [*multiples, width]


def allocate(curves: Sequence[Curve], costs: Sequence[int], *, steps: Sequence[int], budget: int) -> list[int]:
    """Returns a width for every block, with the smallest sum of errors on the hulls of the curves.

    A step of neurons at a time goes to the block with the steepest hull for its cost (the first among equals), as long
    as the budget lasts; `costs` are per neuron, `steps` in neurons. Less than one step of the budget is left at any
    block below full width. Every block gets one step, or all if it has fewer neurons. Raises `ValueError` for a budget
    too small for these.
    """
    widths = [possible_widths(curve.widths[-1], step) for curve, step in zip(curves, steps, strict=True)]
    gains = [-np.diff(_lower_hull(np.asarray(w), c.at(w))) / np.diff(w) for w, c in zip(widths, curves, strict=True)]
    left = budget - sum(cost * one[0] for cost, one in zip(costs, widths, strict=True))
    if left < 0:
        raise ValueError(f"`budget` must be at least {budget - left}, got {budget}")
    taken = [0] * len(curves)
    steepest = [
        (-gain[0] / cost, index) for index, (gain, cost) in enumerate(zip(gains, costs, strict=True)) if len(gain)
    ]
    heapq.heapify(steepest)
    while steepest:
        _, index = heapq.heappop(steepest)
        step = taken[index]
        price = costs[index] * (widths[index][step + 1] - widths[index][step])
        if price > left:
            continue
        left, taken[index] = left - price, step + 1
        if step + 1 < len(gains[index]):
            heapq.heappush(steepest, (-gains[index][step + 1] / costs[index], index))
    return [one[step] for one, step in zip(widths, taken, strict=True)]


def _lower_hull(
    widths: Int[np.ndarray, " widths"], errors: Float[np.ndarray, " widths"]
) -> Float[np.ndarray, " widths"]:
    """Returns the largest convex function below the errors, at the same widths (Andrew's monotone chain)."""
    hull: list[int] = []
    for point in range(len(widths)):
        while len(hull) > 1 and _is_above(widths, errors, hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return np.interp(widths, widths[hull], errors[hull])


def _is_above(widths: np.ndarray, errors: np.ndarray, first: int, middle: int, last: int) -> bool:
    """Whether the middle point is on or above the line through the others."""
    rise = (errors[last] - errors[first]) * (widths[middle] - widths[first])
    return bool((errors[middle] - errors[first]) * (widths[last] - widths[first]) >= rise)
