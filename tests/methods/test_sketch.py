import pytest
import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.errors import InputError
from mlpfusion.methods.data_free.neuron_pruning import NeuronPruning
from mlpfusion.methods.data_free.sketch import Sketch, apply_sketch, gaussian_sketch
from mlpfusion.mlp import forward, neurons


@pytest.mark.parametrize("gated", [False, True])
def test_a_permutation_for_s_keeps_the_function(gated):
    mlp = make_mlp(gated=gated)
    generator = torch.Generator().manual_seed(0)
    permutation = torch.eye(12, dtype=torch.float64)[torch.randperm(12, generator=generator)]
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(forward(apply_sketch(mlp, permutation), x), forward(mlp, x))


def test_the_product_of_the_two_maps_is_kept_in_the_mean():
    mlp, wanted = make_mlp(), make_mlp()
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(4000):
        sketched = apply_sketch(mlp, gaussian_sketch(12, 6, generator))
        draws.append(sketched.down @ sketched.up)
    products = torch.stack(draws)
    deviation = (products.mean(0) - wanted.down @ wanted.up) / (products.std(0) / len(draws) ** 0.5)
    assert deviation.abs().max() < 4.5  # standard errors, 25 entries


def test_the_top_neurons_stay_as_they_are():
    mlp = make_mlp(40, gated=True)
    sketched = narrow(mlp, 10, Sketch(top=4), torch.Generator().manual_seed(0)).mlp
    kept = narrow(mlp, 4, NeuronPruning(), torch.Generator()).mlp
    found, wanted = neurons(sketched)[:4], neurons(kept)
    assert torch.equal(found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()])


def test_top_must_leave_room_for_a_sketch():
    for top in (5, 6):
        with pytest.raises(InputError, match=f"`top` must be below the 5 neurons to keep, got {top}"):
            narrow(make_mlp(), 5, Sketch(top=top), torch.Generator())
    with pytest.raises(ValueError, match="`top` must be at least 0, got -1"):
        Sketch(top=-1)
