"""The central claim, exactly (paper, section 4.3 and A.3): the fused block behaves like the expanded one.

The expanded block has the original width, every neuron replaced by its centroid. In float64 the forward pass and the
Adam kernel of the fused block equal the expanded block's to rounding, block of parameters by block of parameters.
"""

import functools

import pytest
import torch
from blocks import narrow
from hypothesis import given, settings
from hypothesis import strategies as st
from random_mlp import make_mlp
from reference import adam_kernel, expanded

from mlpfusion.methods.data_free import fusion
from mlpfusion.methods.data_free.clustering import Clustering
from mlpfusion.methods.data_free.folded_fusion import FoldedFusion
from mlpfusion.mlp import MLP, forward

assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)

every_block = pytest.mark.parametrize(
    ("gated", "biased", "activation"),
    [(g, b, a) for g in (False, True) for b in (False, True) for a in ("gelu", "relu", "silu")],
)


def inputs(seed: int, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    shape = (4, 3, hidden_size)
    x, cotangents = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return x, cotangents


def fuse(mlp: MLP, num_neurons: int, seed: int) -> tuple[MLP, MLP]:
    """The fused block and the expanded one of the same clustering."""
    config = fusion.Fusion()
    clusters = fusion.cluster_neurons(mlp, num_neurons, config, torch.Generator().manual_seed(seed))
    fused = narrow(mlp, num_neurons, config, torch.Generator().manual_seed(seed)).mlp
    return fused, expanded(mlp, clusters.labels)


@every_block
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), num_neurons=st.integers(1, 12))
def test_fused_forward_and_adam_kernel_equal_those_of_the_expanded_block(gated, biased, activation, seed, num_neurons):
    mlp = make_mlp(gated=gated, biased=biased, activation=activation, seed=seed)
    x, cotangents = inputs(seed, mlp.hidden_size)
    fused, wide = fuse(mlp, num_neurons, seed)
    assert_equal(forward(fused, x), forward(wide, x))
    found, wanted = adam_kernel(fused, x, cotangents), adam_kernel(wide, x, cotangents)
    assert set(found) == set(wanted)
    for block in found:
        assert_equal(found[block], wanted[block])


@every_block
def test_folded_p_keeps_the_forward_but_shrinks_the_kernel_of_down(gated, biased, activation):
    mlp = make_mlp(gated=gated, biased=biased, activation=activation)
    x, cotangents = inputs(0, mlp.hidden_size)
    _, wide = fuse(mlp, 4, 0)
    folded = narrow(mlp, 4, FoldedFusion(), torch.Generator().manual_seed(0)).mlp
    assert_equal(forward(folded, x), forward(wide, x))
    found, wanted = adam_kernel(folded, x, cotangents), adam_kernel(wide, x, cotangents)
    for block in set(found) - {"down"}:
        assert_equal(found[block], wanted[block])
    assert found["down"].trace() < 0.9 * wanted["down"].trace()


@every_block
def test_the_root_of_p_keeps_the_forward_for_relu_only_and_never_the_adam_kernel(gated, biased, activation):
    mlp = make_mlp(gated=gated, biased=biased, activation=activation)
    x, cotangents = inputs(0, mlp.hidden_size)
    _, wide = fuse(mlp, 4, 0)
    rooted = narrow(mlp, 4, Clustering(), torch.Generator().manual_seed(0)).mlp
    same_forward = torch.allclose(forward(rooted, x), forward(wide, x), rtol=1e-6, atol=1e-6)
    assert same_forward == (activation == "relu")
    found, wanted = adam_kernel(rooted, x, cotangents), adam_kernel(wide, x, cotangents)
    for block in ("down", "gate" if gated else "up"):
        assert not torch.allclose(found[block], wanted[block], rtol=1e-3)


def test_the_scale_is_an_integer_partition_of_the_neurons():
    mlp = make_mlp(30)
    fused, _ = fuse(mlp, 7, 0)
    assert fused.output_scale is not None
    assert fused.output_scale.dtype == torch.int32
    assert int(fused.output_scale.sum()) == 30
    assert int(fused.output_scale.min()) >= 1
