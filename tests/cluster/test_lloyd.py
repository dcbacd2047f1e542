import pytest
import torch
from kmeans_reference import seeded, skewed_points

from mlpfusion.cluster.gram import GramSpace
from mlpfusion.cluster.lloyd import lloyd
from mlpfusion.cluster.partition import Partition


def two_random_blocks() -> Partition:
    blocks = [skewed_points(seed, 80, 6) for seed in range(2)]
    labels = torch.stack([torch.arange(80)[torch.randperm(80, generator=seeded(seed))] % 8 for seed in range(2)])
    return Partition(GramSpace.from_points(blocks), labels + 8 * torch.arange(2)[:, None], 8)


def test_iterations_are_counted_for_each_block_including_the_last_that_moves_nothing() -> None:
    partition = two_random_blocks()
    num_iter, converged = lloyd(partition, 300)
    assert converged.all()
    assert (num_iter > 1).all()
    assert lloyd(partition, 300)[0].tolist() == [1, 1]


def test_a_block_whose_inertia_no_longer_falls_has_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    inertia = Partition.inertia
    stuck = torch.tensor([0.0, 1.0], dtype=torch.float64)
    monkeypatch.setattr(Partition, "inertia", lambda self: inertia(self) * stuck)
    partition, once, free = two_random_blocks(), two_random_blocks(), two_random_blocks()
    num_iter, converged = lloyd(partition, 300)
    lloyd(once, 1)
    monkeypatch.undo()
    lloyd(free, 300)
    assert converged.all()
    assert int(num_iter[0]) == 1
    assert torch.equal(partition.local_labels()[0], once.local_labels()[0])
    assert torch.equal(partition.local_labels()[1], free.local_labels()[1])
