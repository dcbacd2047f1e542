"""The product G sign(G)^T in whole numbers, against float64 on the same gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpfusion.kernel import KernelAccumulator
from mlpfusion.kernel.product import FloatSignProduct, IntegerSignProduct, PlainProduct


def product_of(make: Any, gradients: torch.Tensor, max_columns: int | None = None) -> torch.Tensor:
    contraction = make(len(gradients), max_columns or gradients.shape[1], gradients)
    for first in range(0, len(gradients), 7):
        contraction.put(first, gradients[first : first + 7].clone())
    return contraction.product(gradients.shape[1])


@pytest.mark.parametrize("make", [IntegerSignProduct, FloatSignProduct])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), num_samples=st.integers(1, 20), num_columns=st.integers(1, 300))
def test_the_product_is_right_in_every_row_over_many_magnitudes(make, seed, num_samples, num_columns):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(num_samples, num_columns, generator=generator)
    gradients *= 10 ** torch.empty(num_samples, 1).uniform_(-20, 10, generator=generator)
    gradients[torch.rand(gradients.shape, generator=generator) < 0.1] = 0
    exact = gradients.double() @ gradients.double().sign().T
    error = (product_of(make, gradients, max_columns=300) - exact).abs()
    assert bool((error <= 2**-15 * num_columns * gradients.abs().double().amax(1, keepdim=True)).all())
    assert float(error.norm()) <= 2e-4 * float(exact.norm())


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_few_columns_and_few_samples_are_exact(seed):
    generator = torch.Generator().manual_seed(seed)
    for num_samples in (1, 2, 19):
        for num_columns in (1, 2, 63, 64, 65):
            gradients = torch.randint(-2, 3, (num_samples, num_columns), generator=generator).float()
            gradients[:, 0] = 127  # makes every entry a digit
            wanted = gradients.double() @ gradients.double().sign().T
            torch.testing.assert_close(product_of(IntegerSignProduct, gradients), wanted)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_outliers_do_not_drown_the_rest_of_their_rows(seed):
    gradients = torch.randn(20, 3000, generator=torch.Generator().manual_seed(seed))
    gradients[:, :20] = 1e4 * torch.eye(20)
    exact = gradients.double() @ gradients.double().sign().T
    rest = exact - torch.diag(exact.diag())
    error = product_of(IntegerSignProduct, gradients) - exact
    assert float(error.norm()) < 2e-3 * float(rest.norm())


def test_tiny_and_zero_rows_and_exact_powers_are_kept():
    gradients = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1e-30, 2e-30], [1e-45, 0.0]])
    product = product_of(IntegerSignProduct, gradients)
    assert not product[0].any()
    assert not product[:, 0].any()
    assert product[1].tolist() == [0.0, 2.0, 0.0, 1.0]
    torch.testing.assert_close(product[2, 2], torch.tensor(3e-30, dtype=torch.float64), rtol=1e-6, atol=0)


def test_nan_and_infinity_do_not_vanish_in_whole_numbers():
    for bad in (float("nan"), float("inf")):
        product = product_of(IntegerSignProduct, torch.tensor([[1.0, bad], [1.0, 1.0]]))
        assert not product[0].isfinite().any()


def test_wide_slabs_are_split_and_half_precision_is_taken_as_fp32(monkeypatch):
    monkeypatch.setattr("mlpfusion.kernel.accumulate._MAX_COLUMNS", 8)
    gradients = torch.randn(3, 21, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = gradients.clone()
    for make, right in ((FloatSignProduct, gradients.double().sign()), (PlainProduct, gradients.double())):
        accumulator = KernelAccumulator(make)
        accumulator.add("w", gradients)
        torch.testing.assert_close(accumulator.kernels().total, gradients.double() @ right.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(gradients, kept)
