import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kmeans_reference import inertia_of, seeded, skewed_points

from mlpfusion.cluster.gram import GramSpace, PointSpace
from mlpfusion.cluster.partition import Partition, fill_empty_clusters

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space_type", [GramSpace, PointSpace])
def test_after_moves_everything_is_as_if_made_from_the_labels(seed: int, space_type: type) -> None:
    space = space_type.from_points([skewed_points(seed + block, 40, 7, torch.float64) for block in range(2)])
    labels = torch.stack([torch.arange(40) % 5, torch.arange(40) % 5 + 5])
    partition = Partition(space, labels.clone(), 5)
    for round_number in range(6):
        points = torch.randperm(80, generator=seeded(seed + round_number))[:9]
        offsets = points // 40 * 5
        partition.move(points, (partition.labels[points] - offsets + 1) % 5 + offsets)
    fresh = Partition(space, partition.labels.view(2, 40), 5)
    torch.testing.assert_close(partition.distances, fresh.distances)
    torch.testing.assert_close(partition.inertia(), fresh.inertia())
    assert torch.equal(partition.counts, fresh.counts)


def test_distances_and_inertia_are_those_of_the_means() -> None:
    points = skewed_points(0, 40, 7, torch.float64)
    labels = torch.arange(40) % 5
    partition = Partition(GramSpace.from_points([points]), labels[None].clone(), 5)
    means = torch.stack([points[cluster::5].mean(0) for cluster in range(5)])
    torch.testing.assert_close(partition.distances, (means[:, None] - points).square().sum(-1))
    assert float(partition.inertia()) == pytest.approx(inertia_of(points, labels))


def test_an_empty_cluster_takes_the_farthest_point_that_leaves_company_behind() -> None:
    labels = torch.tensor([0, 0, 0, 3, 3])
    distances = torch.tensor([1.0, 2.0, 5.0, 9.0, 8.0])
    filled = fill_empty_clusters(labels, distances, 4)
    assert filled.tolist() == [0, 0, 2, 1, 3]
    assert labels.tolist() == [0, 0, 0, 3, 3]


def test_a_lone_point_is_not_taken_however_far_it_is() -> None:
    assert fill_empty_clusters(torch.tensor([0, 1, 1]), torch.tensor([9.0, 1.0, 2.0]), 3).tolist() == [0, 1, 2]


def test_only_the_block_with_the_empty_cluster_changes() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 3])
    filled = fill_empty_clusters(labels, torch.tensor([1.0, 3.0, 2.0, 9.0, 9.0, 9.0]), 2, 2)
    assert filled.tolist() == [0, 1, 0, 2, 2, 3]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_filling_leaves_no_cluster_empty_and_moves_as_few_points_as_needed(data: st.DataObject) -> None:
    num_clusters = data.draw(st.integers(1, 8))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, num_clusters - 1), min_size=num_clusters, max_size=20)))
    distances = torch.tensor(data.draw(st.lists(st.floats(0, 9), min_size=len(labels), max_size=len(labels))))
    filled = fill_empty_clusters(labels, distances, num_clusters)
    assert filled.unique().tolist() == list(range(num_clusters))
    assert int((filled != labels).sum()) == num_clusters - len(labels.unique())
