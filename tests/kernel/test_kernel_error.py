"""Measures of two kernels."""

import math

import pytest
import torch

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockKernels, centered_kernel_alignment, compare_kernels, kernel_error


def draw(seed: int, size: int = 6) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equal_kernels_have_no_error():
    error = kernel_error(draw(0), draw(0))
    assert (error.relative, error.absolute, error.trace_ratio) == (0, 0, 1)
    assert math.isclose(error.cosine, 1)
    assert math.isclose(error.alignment, 1)


def test_a_multiple_changes_the_size_but_not_the_angles():
    kernel = draw(0)
    error = kernel_error(kernel, 3 * kernel)
    assert math.isclose(error.relative, 2)
    assert math.isclose(error.absolute, 2 * float(kernel.norm()))
    assert math.isclose(error.trace_ratio, 3)
    assert math.isclose(error.cosine, 1)
    assert math.isclose(error.alignment, 1)


def test_the_alignment_does_not_see_what_is_added_to_rows_and_columns():
    kernel = draw(0)
    moved = kernel + draw(1)[:1] + draw(2)[:, :1]
    assert math.isclose(centered_kernel_alignment(kernel, moved), 1)
    assert kernel_error(kernel, moved).cosine < 0.99


def test_the_alignment_is_that_of_the_centring_matrix():
    first, second = draw(0), draw(1)
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    a, b = (centring @ kernel @ centring for kernel in (first, second))
    wanted = float((a * b).sum() / (a.norm() * b.norm()))
    assert math.isclose(centered_kernel_alignment(first, second), wanted)


def test_a_zero_kernel_gives_no_number():
    error = kernel_error(torch.zeros(2, 2), torch.eye(2))
    assert math.isinf(error.relative)
    assert math.isnan(error.cosine)
    assert math.isclose(error.absolute, math.sqrt(2))


def test_blocks_that_only_one_has_count_in_the_totals_only():
    before = BlockKernels({"up": draw(0), "down": draw(1), "down_bias": draw(2)})
    after = BlockKernels({"up": draw(0), "down.left": draw(3), "down.right": draw(4), "down_bias": draw(5)})
    comparison = compare_kernels(before, after)
    assert set(comparison.blocks) == {"up", "down_bias"}
    assert comparison.blocks["up"].absolute == 0
    difference = (draw(3) + draw(4) - draw(1)).norm()
    assert math.isclose(comparison.without_down_bias.absolute, float(difference))
    assert math.isclose(comparison.total.absolute, float((draw(3) + draw(4) + draw(5) - draw(1) - draw(2)).norm()))


def test_kernels_of_different_samples_are_refused():
    with pytest.raises(InputError, match="`before` and `after` must be square matrices of one size"):
        kernel_error(draw(0, 3), draw(0, 4))
    with pytest.raises(InputError, match="`before` and `after` must be square matrices of one size"):
        kernel_error(torch.ones(2, 3), torch.ones(2, 3))
