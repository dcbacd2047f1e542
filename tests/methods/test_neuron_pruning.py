from dataclasses import replace

import torch
from blocks import narrow
from random_mlp import make_mlp

from mlpfusion.methods.data_free.neuron_pruning import NeuronPruning, joint_score


def kept(mlp, num_neurons: int) -> torch.Tensor:
    small = narrow(mlp, num_neurons, NeuronPruning(), torch.Generator()).mlp
    return torch.tensor([int((mlp.up == row).all(1).nonzero()) for row in small.up])


def test_rows_of_up_and_columns_of_down_stay_paired():
    mlp = make_mlp(gated=True)
    small = narrow(mlp, 5, NeuronPruning(), torch.Generator()).mlp
    index = kept(mlp, 5)
    assert torch.equal(small.down, mlp.down[:, index])
    assert small.gate is not None
    assert mlp.gate is not None
    assert torch.equal(small.gate, mlp.gate[index])


def test_the_best_scores_are_kept():
    mlp = make_mlp()
    score = joint_score(mlp, 2)
    rest = [i for i in range(12) if i not in kept(mlp, 5)]
    assert score[kept(mlp, 5)].min() >= score[rest].max()


def test_moving_scale_between_the_two_maps_leaves_the_selection_unchanged():
    mlp = make_mlp(biased=False)
    factors = torch.linspace(0.1, 10, 12, dtype=torch.float64)
    moved = replace(mlp, up=mlp.up * factors[:, None], down=mlp.down / factors)
    assert torch.equal(kept(mlp, 5), kept(moved, 5))
