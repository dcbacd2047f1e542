import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kmeans_reference import best_single_move_gain, inertia_of, lloyd_reference, seeded, skewed_points

from mlpfusion.cluster.gram import GramSpace
from mlpfusion.cluster.partition import Partition
from mlpfusion.cluster.refine import Moves, compatible, refine

SEEDS = range(6)


def random_partition(points: torch.Tensor, num_clusters: int, seed: int) -> Partition:
    labels = torch.arange(len(points)) % num_clusters
    labels = labels[torch.randperm(len(points), generator=seeded(seed))]
    return Partition(GramSpace.from_points([points - points.mean(0)]), labels[None], num_clusters)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_single_move_is_left_and_lloyd_moves_nothing(seed: int) -> None:
    points = skewed_points(seed, 24, 4, torch.float64)
    partition = random_partition(points, 7, seed)
    _, converged = refine(partition)
    assert converged.all()
    assert best_single_move_gain(points, partition.labels) < 1e-8 * inertia_of(points, partition.labels)
    means = torch.stack([points[partition.labels == cluster].mean(0) for cluster in range(7)])
    assert torch.equal(lloyd_reference(points, means), partition.labels)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), num_points=st.integers(2, 40), num_clusters=st.integers(1, 12))
def test_every_round_lowers_the_inertia_and_empties_no_cluster(seed: int, num_points: int, num_clusters: int) -> None:
    points = skewed_points(seed, max(num_points, num_clusters), 3, torch.float64)
    partition = random_partition(points, num_clusters, seed)
    inertia = inertia_of(points, partition.labels)
    for _ in range(200):
        rounds, converged = refine(partition, max_rounds=1)
        if converged.all():
            assert rounds.tolist() == [0]
            return
        before, inertia = inertia, inertia_of(points, partition.labels)
        assert inertia < before
        assert len(partition.labels.unique()) == num_clusters
    pytest.fail("the moves do not end")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_move_that_must_be_alone_in_a_cluster_is_and_the_best_move_is_made(data: st.DataObject) -> None:
    clusters = st.integers(0, 5)
    pairs = data.draw(st.lists(st.tuples(clusters, clusters).filter(lambda pair: pair[0] != pair[1]), min_size=1))
    flags = st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))
    sources, targets = torch.tensor(pairs).unbind(1)
    alone = [torch.tensor(data.draw(flags)) for _ in range(2)]
    made = compatible(Moves(torch.arange(len(pairs)), sources, targets, *alone), 6)
    assert made[0]
    for cluster in range(6):
        leaving, joining = made & (sources == cluster), made & (targets == cluster)
        if (leaving & alone[0]).any() or (joining & alone[1]).any():
            assert int(leaving.sum() + joining.sum()) == 1


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 0.7, 1.3, 1.7, 2.9])
@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 1, 1]])
def test_a_move_that_gains_nothing_is_not_made(shift: float, labels: list[int]) -> None:
    points = torch.tensor([[0.0], [2.0], [4.0]]) + shift
    partition = Partition(GramSpace.from_points([points - points.mean(0)]), torch.tensor([labels]), 2)
    rounds, converged = refine(partition)
    assert (rounds.tolist(), converged.tolist()) == ([0], [True])
    assert partition.labels.tolist() == labels


@pytest.mark.parametrize("tol", [0.0, 0.02])
@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_are_refined_as_if_alone(seed: int, tol: float) -> None:
    blocks = [skewed_points(seed + 10 * block, 50, 6) for block in range(3)]
    labels = torch.stack([torch.randperm(50, generator=seeded(seed + block)) % 9 for block in range(3)])
    together = Partition(GramSpace.from_points(blocks), labels + 9 * torch.arange(3)[:, None], 9)
    rounds, _ = refine(together, tol)
    for block in range(3):
        alone = Partition(GramSpace.from_points(blocks[block : block + 1]), labels[block : block + 1].clone(), 9)
        assert refine(alone, tol)[0].tolist() == rounds[block : block + 1].tolist()
        assert torch.equal(alone.local_labels()[0], together.local_labels()[block])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tolerance_ends_with_the_first_round_that_gains_less(seed: int) -> None:
    points = skewed_points(seed, 60, 4, torch.float64)
    partition, step_by_step = (random_partition(points, 15, seed) for _ in range(2))
    (rounds,), converged = refine(partition, 0.05)
    falls = []
    for _ in range(int(rounds)):
        before = inertia_of(points, step_by_step.labels)
        refine(step_by_step, max_rounds=1)
        falls.append(before / inertia_of(points, step_by_step.labels) - 1)
    assert converged.all()
    assert torch.equal(partition.labels, step_by_step.labels)
    assert all(fall > 0.05 for fall in falls[:-1])
    assert falls[-1] <= 0.05


def test_a_pair_splits_where_lloyd_would_leave_it() -> None:
    points = torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.float64)
    partition = Partition(GramSpace.from_points([points]), torch.tensor([[0, 1, 1]]), 2)
    refine(partition)
    assert partition.labels.tolist() == [0, 0, 1]
