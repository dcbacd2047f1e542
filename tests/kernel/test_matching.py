"""Scales matched to a kernel are the solution of a bounded least-squares problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from mlpfusion.kernel.matching import Matching, positive_scales


def problem(num_sides, seed):
    """Kernels of neurons that are alike, as those of a block are, and a target that asks some scales below zero."""
    generator = torch.Generator().manual_seed(seed)
    common, target = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    sides = [common + 0.7 * torch.randn(9, 6, 6, generator=generator, dtype=torch.float64) for _ in range(num_sides)]
    return sides, [side.sum(0) + target for side in sides], torch.stack(sides).sum((0, 1)) + 12 * target


@pytest.mark.parametrize("ridge", [0.01, 0.3])
@pytest.mark.parametrize("num_sides", [2, 3])
def test_the_scales_of_neurons_are_those_of_bounded_least_squares(num_sides, ridge):
    sides, targets, total = problem(num_sides, 0)
    layer = torch.cat(positive_scales(sides, targets, total, Matching("layer"))).numpy()
    found = torch.cat(positive_scales(sides, targets, total, Matching("neuron", ridge))).numpy()
    columns = torch.cat(sides).flatten(1).numpy().T * layer
    weight = ridge * (columns**2).sum(0).mean()
    rows = np.concatenate([columns, np.sqrt(weight) * np.eye(len(layer))])
    right = np.concatenate([total.flatten().numpy(), np.full(len(layer), np.sqrt(weight))])
    wanted = lsq_linear(rows, right, bounds=(1e-2, np.inf), method="bvls", tol=1e-14)
    assert (wanted.active_mask < 0).any()  # some scales are at the bound
    np.testing.assert_allclose(found / layer, wanted.x, rtol=1e-4, atol=1e-5)


def test_the_scale_of_a_layer_is_least_squares_on_its_side():
    sides, targets, total = problem(3, 1)
    for side, target, found in zip(
        sides, targets, positive_scales(sides, targets, total, Matching("layer")), strict=True
    ):
        kernel = side.sum(0).flatten().numpy()
        wanted = np.linalg.lstsq(kernel[:, None], target.flatten().numpy(), rcond=None)[0][0]
        torch.testing.assert_close(found, torch.full((9,), float(wanted), dtype=torch.float64))


@pytest.mark.parametrize("per", ["layer", "neuron"])
def test_without_kernels_the_scales_are_one(per):
    zeros = [torch.zeros(4, 3, 3)] * 2
    targets = [torch.eye(3).double()] * 2
    scales = positive_scales(zeros, targets, torch.eye(3).double(), Matching(per))
    assert [scale.tolist() for scale in scales] == [[1.0] * 4] * 2
