import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kmeans_reference import canonical, inertia_of, lloyd_reference, seeded, skewed_points
from safetensors.torch import load_file
from sklearn.cluster import KMeans
from torch import Tensor

from mlpfusion.cluster import KMeansResult, kmeans, kmeans_batched

SEEDS = range(6)


def same(first: KMeansResult, second: KMeansResult) -> bool:
    tensors = zip(
        (first.labels, first.centroids, first.cluster_sizes),
        (second.labels, second.centroids, second.cluster_sizes),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in tensors) and first.inertia == second.inertia


def random_rows(points: Tensor, number: int, seed: int) -> Tensor:
    return points[torch.randperm(len(points), generator=seeded(seed))[:number]]


def layer_zero(folder: Path) -> Tensor:
    """The 1536 neurons of the first MLP of MiniLM: row of `up`, bias, column of `down`."""
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("layer.0.intermediate.dense.weight"))
    layer = name.removesuffix("intermediate.dense.weight")
    up, bias = state[name], state[f"{layer}intermediate.dense.bias"]
    return torch.cat([up, bias[:, None], state[f"{layer}output.dense.weight"].T], 1)


def scikit_learn(points: Tensor, num_clusters: int, **options: Any) -> tuple[Tensor, float]:
    fitted = KMeans(num_clusters, **options).fit(points.numpy())
    assert fitted.inertia_ is not None
    return torch.as_tensor(fitted.labels_), float(fitted.inertia_)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_gram_bytes", [2**32, 0])
def test_from_the_same_centres_the_labels_are_those_of_slow_lloyd(seed: int, max_gram_bytes: int) -> None:
    points = skewed_points(seed, dtype=torch.float64)
    init = random_rows(points, 12, seed)
    result = kmeans(points, 12, generator=seeded(0), init=init, refine=False, max_gram_bytes=max_gram_bytes)
    assert result.labels.tolist() == canonical(lloyd_reference(points, init))
    assert result.converged


@pytest.mark.parametrize("seed", SEEDS)
def test_from_the_same_centres_scikit_learn_finds_the_same(seed: int) -> None:
    points = skewed_points(seed, 300)
    init = random_rows(points, 40, seed)
    result = kmeans(points, 40, generator=seeded(0), init=init, refine=False)
    labels, inertia = scikit_learn(points, 40, init=init.numpy(), n_init=1, tol=0)
    assert result.labels.tolist() == canonical(labels) or result.inertia == pytest.approx(inertia, rel=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_defaults_come_within_two_percent_of_scikit_learns_best_of_five_or_below(seed: int) -> None:
    points = skewed_points(seed, 160)
    _, inertia = scikit_learn(points, 40, n_init=5, random_state=seed)
    assert kmeans(points, 40, generator=seeded(seed)).inertia <= inertia * 1.02


def test_on_a_real_layer_the_inertia_is_below_scikit_learns_best_of_thirty(minilm: Path) -> None:
    result = kmeans(layer_zero(minilm), 384, generator=seeded(0))
    assert result.inertia < 2076.1
    assert result.converged


@pytest.mark.parametrize("seed", SEEDS)
def test_with_and_without_a_gram_matrix_the_labels_are_the_same(seed: int) -> None:
    points = skewed_points(seed, dtype=torch.float64)
    init = random_rows(points, 30, seed)  # the seeding has ties, which the rounding of each space may break its own way
    gram = kmeans(points, 30, generator=seeded(seed), init=init)
    gemm = kmeans(points, 30, generator=seeded(seed), init=init, max_gram_bytes=0)
    assert same(gram, gemm)


@pytest.mark.parametrize("seed", SEEDS)
def test_refining_lowers_the_inertia(seed: int) -> None:
    points = skewed_points(seed)
    plain = kmeans(points, 30, generator=seeded(seed), refine=False)
    assert kmeans(points, 30, generator=seeded(seed)).inertia <= plain.inertia
    assert plain.num_rounds == 0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), num_points=st.integers(1, 60), data=st.data())
def test_a_result_holds_together(seed: int, num_points: int, data: st.DataObject) -> None:
    points = skewed_points(seed, num_points, 5)
    num_clusters = data.draw(st.integers(1, num_points))
    result = kmeans(points, num_clusters, generator=seeded(seed))
    assert result.labels.tolist() == canonical(result.labels)
    assert result.cluster_sizes.tolist() == result.labels.bincount(minlength=num_clusters).tolist()
    assert int(result.cluster_sizes.min()) >= 1
    means = torch.stack([points[result.labels == cluster].double().mean(0) for cluster in range(num_clusters)])
    torch.testing.assert_close(result.centroids, means.float())
    assert result.inertia == pytest.approx(inertia_of(points, result.labels), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_clusters", [4, 5, 9, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_distinct_rows_leave_no_inertia_and_no_empty_cluster(
    seed: int, num_clusters: int, dtype: torch.dtype
) -> None:
    distinct = skewed_points(seed, 4, dtype=dtype)
    distinct[1] = -distinct[0]
    distinct[2] = torch.nextafter(distinct[3], torch.zeros((), dtype=dtype))  # nearer than an inner product can tell
    points = distinct[torch.randint(4, (16,), generator=seeded(seed))]
    points[:4] = distinct
    result = kmeans(points, num_clusters, generator=seeded(seed))
    assert result.inertia == 0
    assert int(result.cluster_sizes.min()) >= 1
    assert len(result.cluster_sizes) == num_clusters
    assert torch.equal(result.centroids[result.labels], points)


@pytest.mark.parametrize("refine", [True, False])
def test_as_many_clusters_as_points_is_the_identity(refine: bool) -> None:
    points = skewed_points(0, 30)
    result = kmeans(points, 30, generator=seeded(0), refine=refine)
    assert result.labels.tolist() == list(range(30))
    assert torch.equal(result.centroids, points)
    assert result.inertia == 0
    assert result.num_singletons == 30


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_centroids_and_inertias_are_those_of_the_means_also_of_many_features(dtype: torch.dtype) -> None:
    points = skewed_points(0, 40, 500, dtype)
    result = kmeans(points, 9, generator=seeded(0))
    means = torch.stack([points[result.labels == cluster].double().mean(0) for cluster in range(9)])
    torch.testing.assert_close(result.centroids, means.to(dtype))
    assert result.inertia == pytest.approx(inertia_of(points, result.labels), rel=1e-12)
    assert result.total_inertia == pytest.approx(inertia_of(points, torch.zeros_like(result.labels)), rel=1e-12)


def test_one_cluster_is_the_mean() -> None:
    points = skewed_points(0)
    result = kmeans(points, 1, generator=seeded(0))
    torch.testing.assert_close(result.centroids, points.mean(0, keepdim=True))
    assert result.inertia == result.total_inertia
    assert result.inertia_ratio == 1
    assert result.largest_cluster == len(points)


def test_identical_points_have_no_inertia_ratio_to_speak_of() -> None:
    result = kmeans(torch.ones(6, 2), 2, generator=seeded(0))
    assert (result.inertia, result.total_inertia, result.inertia_ratio) == (0, 0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_permuting_the_points_permutes_the_labels_and_nothing_else(seed: int) -> None:
    points = skewed_points(seed)
    points[-10:] = points[:10]
    permutation = torch.randperm(len(points), generator=seeded(seed))
    plain = kmeans(points, 30, generator=seeded(seed))
    permuted = kmeans(points[permutation], 30, generator=seeded(seed))
    assert canonical(plain.labels[permutation]) == permuted.labels.tolist()
    assert torch.equal(plain.centroids[plain.labels][permutation], permuted.centroids[permuted.labels])
    assert plain.inertia == permuted.inertia


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options", [{}, {"max_gram_bytes": 0, "tol": 0.0}, {"tol": 0.01}, {"num_init": 2, "refine": False}]
)
def test_a_block_is_clustered_as_if_alone(seed: int, options: dict[str, Any]) -> None:
    blocks = torch.stack([skewed_points(seed + 10 * block, 60) for block in range(4)])
    blocks[2] = blocks[2, :5].repeat(12, 1)
    together = kmeans_batched(blocks, 15, generators=[seeded(seed + block) for block in range(4)], **options)
    for block, result in enumerate(together):
        assert same(result, kmeans(blocks[block], 15, generator=seeded(seed + block), **options))


def test_blocks_that_do_not_fit_together_are_clustered_the_same() -> None:
    blocks = torch.stack([skewed_points(block, 60) for block in range(5)])
    whole, split = (
        kmeans_batched(blocks, 15, generators=[seeded(block) for block in range(5)], max_gram_bytes=limit)
        for limit in (2**32, 2 * 60 * 60 * 4)
    )
    assert all(same(a, b) for a, b in zip(whole, split, strict=True))


class MadeBlocks(Sequence[Tensor]):
    """Makes a block whenever one is asked for, and counts the blocks that somebody still holds."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Tensor]] = []
        self.most_held = 0

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  (no slices)
        self.most_held = max(self.most_held, sum(block() is not None for block in self.made))
        block = skewed_points(index, 60)
        self.made.append(weakref.ref(block))
        return block


@pytest.mark.parametrize("max_gram_bytes", [2**32, 2 * 60 * 60 * 4])
def test_blocks_may_be_made_when_asked_for_and_at_most_one_is_held(max_gram_bytes: int) -> None:
    blocks = MadeBlocks()
    made, given = (
        kmeans_batched(points, 15, generators=[seeded(i) for i in range(5)], max_gram_bytes=max_gram_bytes)
        for points in (blocks, torch.stack([skewed_points(i, 60) for i in range(5)]))
    )
    assert all(same(a, b) for a, b in zip(made, given, strict=True))
    assert blocks.most_held <= 1


def test_the_same_seed_gives_the_same_bytes_and_leaves_torchs_own_generator_alone() -> None:
    points = skewed_points(0)
    state = torch.get_rng_state()
    first, second = (kmeans(points, 30, generator=seeded(5)) for _ in range(2))
    assert same(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_input_is_left_unchanged_even_if_it_wants_a_gradient(dtype: torch.dtype) -> None:
    points = torch.nn.Parameter(skewed_points(0, dtype=dtype))
    before = points.detach().clone()
    result = kmeans(points, 30, generator=seeded(0))
    assert torch.equal(points.detach(), before)
    assert not result.centroids.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_centroids_have_the_dtype_of_the_points(dtype: torch.dtype) -> None:
    points = (skewed_points(0) / 100).to(dtype)
    result = kmeans(points, 30, generator=seeded(0))
    assert result.centroids.dtype == dtype
    assert result.labels.dtype == torch.int64
    assert result.cluster_sizes.dtype == torch.int32
    assert (
        result.labels.tolist() == kmeans(points.float(), 30, generator=seeded(0)).labels.tolist() or dtype.itemsize > 4
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_far_from_the_origin_the_clusters_are_the_same(seed: int) -> None:
    points = skewed_points(seed, dtype=torch.float64).float().double()
    init = random_rows(points, 30, seed)  # the seeding has ties, which rounding breaks
    near, far = (kmeans(points + shift, 30, generator=seeded(seed), init=init + shift) for shift in (0.0, 1024.0))
    assert near.labels.tolist() == far.labels.tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_gram_bytes", [2**32, 0])
def test_centres_that_attract_nothing_are_moved_to_far_points(seed: int, max_gram_bytes: int) -> None:
    points = skewed_points(seed)
    init = torch.cat([points[:3], 1e4 + torch.arange(9.0)[:, None].expand(9, 20)])
    result = kmeans(points, 12, generator=seeded(0), init=init, refine=False, max_gram_bytes=max_gram_bytes)
    few = kmeans(points, 3, generator=seeded(0), init=init[:3], refine=False)
    assert int(result.cluster_sizes.min()) >= 1
    assert result.inertia < few.inertia
    assert result.converged


@pytest.mark.parametrize("max_gram_bytes", [2**32, 0])
def test_the_farthest_points_replace_centres_that_attract_nothing(max_gram_bytes: int) -> None:
    points, init = torch.tensor([[0.0], [1.0], [10.0], [30.0]]), torch.tensor([[0.0], [1000.0], [2000.0]])
    result = kmeans(points, 3, generator=seeded(0), init=init, refine=False, max_gram_bytes=max_gram_bytes)
    assert result.labels.tolist() == [0, 0, 1, 2]
    assert result.num_iter == 1


@pytest.mark.parametrize("max_gram_bytes", [2**32, 0])
def test_a_cluster_that_lloyd_empties_takes_the_farthest_point(max_gram_bytes: int) -> None:
    # The second centre starts with points 3 and 4 and loses both, one to each of the others, after one iteration.
    points = torch.tensor([[1, 15], [6, 14], [22, 11], [2, 21], [18, 14], [21, 3], [21, 6]], dtype=torch.float64)
    init = torch.tensor([[4.0, -1.0], [1.0, 25.0], [-5.0, 18.0]], dtype=torch.float64)
    result = kmeans(points, 3, generator=seeded(0), init=init, refine=False, max_gram_bytes=max_gram_bytes)
    assert result.labels.tolist() == [0, 0, 1, 0, 2, 1, 1]
    assert result.converged


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.4, 0.9, 1.4])
def test_a_point_with_two_nearest_centres_stays_where_it_is(shift: float) -> None:
    points = torch.tensor([[0.0], [2.0], [3.0], [3.0]]) + shift
    result = kmeans(points, 2, generator=seeded(0), init=torch.tensor([[3.4], [0.9]]) + shift, refine=False)
    assert result.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_more_restarts_are_never_worse(seed: int) -> None:
    points = skewed_points(seed)
    single, several = (kmeans(points, 20, generator=seeded(seed), num_init=number) for number in (1, 4))
    assert several.inertia <= single.inertia


def test_an_iteration_limit_that_was_reached_shows() -> None:
    result = kmeans(skewed_points(0), 12, generator=seeded(0), max_iter=1, refine=False)
    assert (result.num_iter, result.converged) == (1, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_clusters": 0}, "`num_clusters` must be between 1 and 120, got 0"),
        ({"num_clusters": 121}, "`num_clusters` must be between 1 and 120, got 121"),
        ({"num_init": 0}, "`num_init` must be at least 1, got 0"),
        ({"num_candidates": 0}, "`num_candidates` must be at least 1, got 0"),
        ({"max_iter": 0}, "`max_iter` must be at least 1, got 0"),
        ({"tol": -1.0}, "`tol` must be at least 0, got -1.0"),
        ({"init": torch.zeros(3, 20)}, r"`init` must have the shape \(4, 20\) a block, got \(3, 20\)"),
        ({"init": torch.full((4, 20), torch.nan)}, "`init` must be finite, got 80 entries that are not"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(skewed_points(0), **({"num_clusters": 4, "generator": seeded(0)} | options))


def test_bad_points_are_counted() -> None:
    points = skewed_points(0)
    points[0, 0], points[1, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="`points` must be finite, got 2 entries that are not"):
        kmeans(points, 4, generator=seeded(0))


def test_every_block_needs_a_generator() -> None:
    with pytest.raises(ValueError, match=r"one generator a block \(2\), got 1"):
        kmeans_batched(torch.randn(2, 5, 3, generator=seeded(0)), 2, generators=[seeded(0)])
