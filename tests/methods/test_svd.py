import pytest
import torch
from blocks import factorise as compress
from random_mlp import make_mlp

from mlpfusion.errors import InputError
from mlpfusion.methods.block import factor_rank
from mlpfusion.methods.data_free.svd import SVD, factorise, truncated_svd

every_layout = pytest.mark.parametrize("layout", [{"biased": False}, {"biased": True}, {"gated": True}], ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@every_layout
@every_dtype
def test_full_rank_gives_the_matrices_back(layout, dtype):
    mlp = make_mlp(dtype=dtype, **layout)
    outcome = factorise(mlp, 5)
    assert outcome.factors.keys() == mlp.matrices().keys()
    for name, (left, right) in outcome.factors.items():
        assert left.dtype == right.dtype == dtype
        tolerance = {torch.bfloat16: 5e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(left @ right, mlp.matrices()[name], atol=tolerance, rtol=tolerance)
    assert outcome.metrics["squared_error_ratio"] == 0


def test_the_squared_error_is_that_of_the_dropped_singular_values():
    mlp = make_mlp(gated=True)
    outcome = factorise(mlp, 2)
    squares = 0.0
    for name, (left, right) in outcome.factors.items():
        weight = mlp.matrices()[name]
        dropped = truncated_svd(weight, 2)[2][2:].square().sum()
        torch.testing.assert_close((weight - left @ right).square().sum(), dropped)
        squares += float(dropped)
    total = sum(float(weight.square().sum()) for weight in mlp.matrices().values())
    assert outcome.metrics["squared_error_ratio"] == pytest.approx(squares / total)


def test_it_is_deterministic_and_leaves_its_input():
    mlp = make_mlp(40, 6)
    before = {name: tensor.clone() for name, tensor in mlp.tensors().items()}
    first, second = (compress(mlp, 0.4, SVD(), torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for name, factors in first.factors.items():
        assert all(torch.equal(one, other) for one, other in zip(factors, second.factors[name], strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in mlp.tensors().items())


def test_the_rank_of_a_quarter_is_that_of_the_paper():
    assert factor_rank(768, 3072, 0.25) == 153
    assert 153 * (768 + 3072) <= 0.25 * 768 * 3072 < 154 * (768 + 3072)
    assert factor_rank(768, 3072, 1e-6) == 1


def test_bad_input_names_its_field():
    for rank in (0, 6):
        with pytest.raises(InputError, match=f"`rank` must be between 1 and 5, got {rank}"):
            factorise(make_mlp(), rank)
    with pytest.raises(InputError, match="`method` must be a config of .*SVD.*, got 'svd'"):
        compress(make_mlp(), 0.4, "svd", torch.Generator())
