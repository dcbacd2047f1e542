"""The quick check that all numbers are finite."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlpfusion.checks import num_not_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(seed=st.integers(0, 10**6), size=st.integers(1, 300), num_bad=st.integers(0, 3))
def test_every_entry_that_is_not_finite_is_counted(dtype, seed, size, num_bad):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator).to(dtype)
    places = torch.randperm(size, generator=generator)[:num_bad]
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    values[places] = bad[torch.randint(3, places.shape, generator=generator)]
    assert num_not_finite(values) == len(places)
    assert num_not_finite(values.expand(2, -1).T) == 2 * len(places)


def test_the_largest_numbers_and_no_numbers_are_finite():
    assert num_not_finite(torch.full((3,), torch.finfo(torch.float16).max, dtype=torch.float16)) == 0
    assert num_not_finite(torch.empty(0, 4)) == 0
