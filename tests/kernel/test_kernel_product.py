"""The product G sign(G)^T in whole numbers, against float64 on the same gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpfusion.kernel import KernelAccumulator
from mlpfusion.kernel.product import FloatSignProduct, IntegerSignProduct, PlainProduct


@pytest.mark.parametrize("make", [IntegerSignProduct, FloatSignProduct])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), num_samples=st.integers(1, 20), num_columns=st.integers(1, 300))
def test_the_product_is_exact_to_fp32_over_many_magnitudes(make, seed, num_samples, num_columns):
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(num_samples, num_columns, generator=generator)
    gradients *= 10 ** torch.empty(num_samples, 1).uniform_(-20, 10, generator=generator)
    gradients[torch.rand(gradients.shape, generator=generator) < 0.1] = 0
    exact = gradients.double() @ gradients.double().sign().T
    contraction = make(num_samples, 300, gradients)
    for first in range(0, num_samples, 7):
        contraction.put(first, gradients[first : first + 7].clone())
    error = (contraction.product(num_columns) - exact).abs() / gradients.double().norm(dim=1)[:, None].clamp_min(1e-300)
    assert float(error.max()) < 1e-5


def test_tiny_and_zero_rows_and_exact_powers_are_kept():
    gradients = torch.tensor([[0.0, 0.0], [1.0, -1.0], [1e-30, 2e-30], [1e-45, 0.0]])
    contraction = IntegerSignProduct(4, 2, gradients)
    contraction.put(0, gradients.clone())
    product = contraction.product(2)
    assert not product[0].any()
    assert not product[:, 0].any()
    assert product[1].tolist() == [0.0, 2.0, 0.0, 1.0]
    torch.testing.assert_close(product[2, 2], torch.tensor(3e-30, dtype=torch.float64), rtol=1e-6, atol=0)


def test_nan_and_infinity_do_not_vanish_in_whole_numbers():
    for bad in (float("nan"), float("inf")):
        contraction = IntegerSignProduct(2, 2, torch.zeros(1))
        contraction.put(0, torch.tensor([[1.0, bad], [1.0, 1.0]]))
        assert not contraction.product(2)[0].isfinite().any()


def test_wide_slabs_are_split_and_half_precision_is_taken_as_fp32(monkeypatch):
    monkeypatch.setattr("mlpfusion.kernel.accumulate._MAX_COLUMNS", 8)
    gradients = torch.randn(3, 21, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = gradients.clone()
    for make, right in ((FloatSignProduct, gradients.double().sign()), (PlainProduct, gradients.double())):
        accumulator = KernelAccumulator(make)
        accumulator.add("w", gradients)
        torch.testing.assert_close(accumulator.kernels().total, gradients.double() @ right.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(gradients, kept)
