import pytest
import torch
from kmeans_reference import greedy_choices, seeded, skewed_points

from mlpfusion.cluster.gram import GramSpace, PointSpace
from mlpfusion.cluster.seeding import distances_to_points, draw_uniforms, greedy_kmeans_plusplus

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("space_type", [GramSpace, PointSpace])
def test_every_centre_is_the_best_of_the_candidates_of_its_step(seed: int, space_type: type) -> None:
    points = skewed_points(seed, 60, dtype=torch.float64)
    uniforms = draw_uniforms([seeded(seed)], (1, 12, 4))[0]
    first, *others = centers = greedy_kmeans_plusplus(space_type.from_points([points]), uniforms)[0].tolist()
    assert first == int(uniforms[0, 0, 0] * 60)
    for center, sums in zip(others, greedy_choices(points, uniforms[0], centers), strict=True):
        assert sums[center] == pytest.approx(min(sums.values()), rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_centres_of_a_block_do_not_depend_on_other_blocks(seed: int) -> None:
    blocks = [skewed_points(seed + i, 50) for i in range(3)]
    together = greedy_kmeans_plusplus(
        GramSpace.from_points(blocks), draw_uniforms([seeded(i) for i in range(3)], (1, 10, 3))[0]
    )
    alone = greedy_kmeans_plusplus(GramSpace.from_points(blocks[1:2]), draw_uniforms([seeded(1)], (1, 10, 3))[0])
    assert torch.equal(together[1], alone[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_distinct_points_become_distinct_centres(seed: int) -> None:
    points = skewed_points(seed, 40)
    chosen = greedy_kmeans_plusplus(GramSpace.from_points([points]), draw_uniforms([seeded(seed)], (1, 40, 2))[0])
    assert sorted(chosen[0].tolist()) == list(range(40))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_distinct_row_is_chosen_before_any_twice(seed: int) -> None:
    rows = torch.tensor([[0.0, 4.0], [3.0, 0.0], [8.0, 1.0], [-5.0, 2.0]])
    points = rows.repeat(6, 1)
    chosen = greedy_kmeans_plusplus(GramSpace.from_points([points]), draw_uniforms([seeded(seed)], (1, 4, 2))[0])
    assert sorted((chosen[0] % 4).tolist()) == [0, 1, 2, 3]


def test_identical_points_give_indices_in_range() -> None:
    chosen = greedy_kmeans_plusplus(
        GramSpace.from_points([torch.zeros(5, 2)]), draw_uniforms([seeded(0)], (1, 3, 2))[0]
    )
    assert ((chosen >= 0) & (chosen < 5)).all()


def test_a_single_candidate_is_drawn_in_proportion_to_its_squared_distance() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    steps = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    uniforms = torch.stack([torch.zeros(1000, dtype=torch.float64), steps], 1)[..., None]
    space = GramSpace.from_points([points] * 1000)
    second = greedy_kmeans_plusplus(space, uniforms)[:, 1]
    assert second.bincount(minlength=3).tolist() == [0, 100, 900]


def test_random_numbers_are_the_generators_own_and_restarts_come_one_after_the_other() -> None:
    state = torch.get_rng_state()
    both = draw_uniforms([seeded(1), seeded(2)], (3, 4, 2))
    assert torch.equal(both[:, 1], draw_uniforms([seeded(2)], (3, 4, 2))[:, 0])
    assert torch.equal(both[:1], draw_uniforms([seeded(1), seeded(2)], (1, 4, 2)))
    assert torch.equal(state, torch.get_rng_state())
    assert both.dtype == torch.float64


def test_the_smallest_random_number_does_not_draw_a_centre_again() -> None:
    space = GramSpace.from_points([torch.tensor([[0.0], [1.0], [3.0]])])
    assert greedy_kmeans_plusplus(space, torch.zeros(1, 3, 1, dtype=torch.float64)).tolist() == [[0, 1, 2]]


def test_distances_to_points_are_squared_and_never_negative() -> None:
    points = skewed_points(0, 30)
    distances = distances_to_points(GramSpace.from_points([points]), torch.tensor([[4, 9]]))
    torch.testing.assert_close(distances[0], (points[[4, 9]][:, None] - points).square().sum(-1), atol=1e-2, rtol=1e-4)
    close_by = distances_to_points(GramSpace.from_points([1000 + points / 1000]), torch.arange(30)[None])
    assert (close_by >= 0).all()
