"""Widths from curves: exact under the budget, steepest first, and as good as trying everything."""

import itertools

import numpy as np
import pytest

from mlpfusion.compression.budget.allocation import Curve, allocate, possible_widths


def random_curves(seed: int, number: int = 3, width: int = 12) -> list[Curve]:
    """Convex in the width: gains that fall, of many sizes."""
    drawn = np.sort(np.random.default_rng(seed).exponential(size=(number, width - 1)), axis=1)
    errors = [np.append(gains.cumsum()[::-1], 0.0) for gains in drawn]
    return [Curve(tuple(range(1, width + 1)), tuple(one.tolist())) for one in errors]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [3, 4, 17, *(pytest.param(width, marks=pytest.mark.slow) for width in (29, 36))])
def test_no_other_widths_of_that_sum_have_a_smaller_error(budget, seed):
    curves = random_curves(seed)
    found = allocate(curves, [1, 1, 1], steps=[1] * 3, budget=budget)

    def total(widths):
        return sum(float(curve.at([width])[0]) for curve, width in zip(curves, widths, strict=True))

    assert sum(found) == budget
    others = (widths for widths in itertools.product(range(1, 13), repeat=3) if sum(widths) <= budget)
    assert total(found) <= min(map(total, others)) + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("round_to", [1, 4, 5, 100])
def test_the_rest_is_less_than_one_step_and_every_width_is_allowed(round_to, seed):
    curves, costs = random_curves(seed, width=23), [7, 3, 5]
    least = sum(cost * min(round_to, 23) for cost in costs)
    for budget in range(least, 15 * 23 + 1):
        found = allocate(curves, costs, steps=[round_to] * 3, budget=budget)
        left = budget - sum(cost * width for cost, width in zip(costs, found, strict=True))
        assert left >= 0
        assert all(width in possible_widths(23, round_to) for width in found)
        for cost, width in zip(costs, found, strict=True):
            larger = [other for other in possible_widths(23, round_to) if other > width]
            assert not larger or left < cost * (larger[0] - width)
    with pytest.raises(ValueError, match=f"`budget` must be at least {least}, got {least - 1}"):
        allocate(curves, costs, steps=[round_to] * 3, budget=least - 1)


@pytest.mark.parametrize("seed", range(3))
def test_widths_grow_with_the_budget(seed):
    curves = random_curves(seed)
    found = [allocate(curves, [1, 1, 1], steps=[1] * 3, budget=budget) for budget in range(3, 37)]
    assert all((np.asarray(small) <= large).all() for small, large in itertools.pairwise(found))


def test_a_dear_neuron_must_gain_more():
    curve = random_curves(0, 1)[0]
    cheap, dear = allocate([curve, curve], [1, 3], steps=[1, 1], budget=24)
    assert cheap > dear


@pytest.mark.parametrize("budget", [30, 61, 100, 160])
def test_every_block_keeps_to_its_own_step(budget):
    curves = random_curves(1, width=24)
    first, second, third = allocate(curves, [1, 4, 1], steps=[1, 6, 9], budget=budget + 20)
    assert (second % 6, third in (9, 18, 24)) == (0, True)
    assert 0 <= budget + 20 - (first + 4 * second + third) < 24 or first == 24


def test_a_curve_goes_through_its_points_and_never_rises():
    curve = Curve((1, 4, 9, 20), (5.0, 2.0, 2.5, 0.0))
    assert curve.at([1, 4, 9, 20]).tolist() == pytest.approx([5.0, 2.0, 2.0, 0.0])
    assert (np.diff(curve.at(range(1, 21))) <= 1e-12).all()


@pytest.mark.parametrize(("widths", "errors"), [((2, 1), (1, 0)), ((0, 1), (1, 0)), ((1, 2), (1,)), ((), ())])
def test_bad_curves_are_refused(widths, errors):
    with pytest.raises(ValueError, match="must"):
        Curve(widths, errors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="finite"):
        Curve((1, 2), (value, 0.0))
