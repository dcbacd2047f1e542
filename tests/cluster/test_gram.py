import pytest
import torch
from kmeans_reference import skewed_points

from mlpfusion.cluster.gram import GramSpace, PointSpace, gram_matrix, segment_sums

SEEDS = range(3)


def two_blocks(seed: int) -> list[torch.Tensor]:
    return [skewed_points(seed, 30, 11, torch.float64), skewed_points(seed + 100, 30, 11, torch.float64)]


@pytest.mark.parametrize("num_points", [1, 2, 7, 8, 9, 100])
def test_the_gram_matrix_holds_all_inner_products(num_points: int) -> None:
    points = skewed_points(0, num_points, dtype=torch.float64)
    torch.testing.assert_close(gram_matrix(points), points @ points.T)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_spaces_give_the_same_inner_products(seed: int) -> None:
    blocks = two_blocks(seed)
    gram, points = GramSpace.from_points(blocks), PointSpace.from_points(blocks)
    indices = torch.tensor([[3, 0], [29, 3]])
    labels = torch.cat([torch.arange(30) % 4, torch.arange(30) % 4 + 4])
    numbers, owners = torch.tensor([0, 2, 3, 7]), torch.tensor([0, 0, 0, 1])
    sums = {space: segment_sums(space.rows.flatten(0, 1), labels, 8) for space in (gram, points)}
    torch.testing.assert_close(gram.squared_norms, points.squared_norms)
    torch.testing.assert_close(gram.with_points(indices), points.with_points(indices))
    torch.testing.assert_close(gram.norms_of_sums(sums[gram], labels), points.norms_of_sums(sums[points], labels))
    torch.testing.assert_close(
        gram.with_sums(sums[gram][numbers], owners), points.with_sums(sums[points][numbers], owners)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space_type", [GramSpace, PointSpace])
def test_inner_products_with_sums_are_those_with_the_summed_points(seed: int, space_type: type) -> None:
    blocks = two_blocks(seed)
    space = space_type.from_points(blocks)
    labels = torch.cat([torch.arange(30) % 3, torch.arange(30) % 3 + 3])
    sums = segment_sums(space.rows.flatten(0, 1), labels, 6)
    expected = torch.stack([block[cluster::3].sum(0) for block in blocks for cluster in range(3)])
    torch.testing.assert_close(
        space.with_sums(sums, torch.arange(6) // 3), torch.cat([expected[:3] @ blocks[0].T, expected[3:] @ blocks[1].T])
    )
    torch.testing.assert_close(space.norms_of_sums(sums, labels), expected.square().sum(1))


@pytest.mark.parametrize("space_type", [GramSpace, PointSpace])
def test_a_block_has_the_same_bytes_alone_and_among_others(space_type: type) -> None:
    blocks = [block.float() for block in two_blocks(0)]
    alone, together = space_type.from_points(blocks[1:]), space_type.from_points(blocks)
    assert torch.equal(alone.rows[0], together.rows[1])
    assert torch.equal(alone.squared_norms[0], together.squared_norms[1])


def test_segment_sums_add_what_shares_a_segment_and_leave_others_zero() -> None:
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    sums = segment_sums(values, torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [[2.0, 20.0], [0.0, 0.0], [5.0, 50.0], [0.0, 0.0]]
    assert segment_sums(values[:, 0], torch.tensor([1, 1, 0]), 2).tolist() == [4.0, 3.0]
