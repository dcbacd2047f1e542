"""Slow and obvious versions of what `mlpfusion.cluster` does, in float64, and points that are hard to cluster."""

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def skewed_points(
    seed: int, num_points: int = 120, num_features: int = 20, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Low rank plus noise, with norms that differ by an order of magnitude, as neurons of a trained MLP have."""
    generator = seeded(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows = draw(num_points, 5) @ draw(5, num_features) + 0.5 * draw(num_points, num_features)
    return (rows * draw(num_points, 1).exp() + 3).to(dtype)


def canonical(labels: Tensor) -> list[int]:
    """Clusters renumbered in the order in which they appear."""
    names: dict[int, int] = {}
    return [names.setdefault(label, len(names)) for label in labels.tolist()]


def inertia_of(points: Tensor, labels: Tensor) -> float:
    points = points.double()
    return sum(
        float((points[labels == label] - points[labels == label].mean(0)).square().sum()) for label in labels.unique()
    )


def lloyd_reference(points: Tensor, centers: Tensor, max_iter: int = 300) -> Tensor:
    """Lloyd's algorithm, point by point; no cluster may become empty on the way."""
    points, centers = points.double(), centers.double()
    labels = (points[:, None] - centers).square().sum(-1).argmin(1)
    for _ in range(max_iter):
        centers = torch.stack([points[labels == cluster].mean(0) for cluster in range(len(centers))])
        assert not centers.isnan().any()
        distances = (points[:, None] - centers).square().sum(-1)
        new = distances.argmin(1)
        if torch.equal(new, labels):
            break
        labels = new
    return labels


def best_single_move_gain(points: Tensor, labels: Tensor) -> float:
    """How much the best move of one point to another cluster lowers the inertia, by trying them all."""
    before, best = inertia_of(points, labels), 0.0
    for point in range(len(points)):
        for cluster in labels.unique().tolist():
            moved = labels.clone()
            moved[point] = cluster
            if len(moved.unique()) == len(labels.unique()):
                best = max(best, before - inertia_of(points, moved))
    return best


def greedy_choices(points: Tensor, uniforms: Tensor, centers: list[int]) -> list[dict[int, float]]:
    """What each step of greedy k-means++ chose from, given the `centers` it chose: candidates and what they leave.

    Two points that are each other's nearest leave the same sum, so a tie between candidates is common.
    """
    points = points.double()
    choices = []
    for step, row in enumerate(uniforms[1:], start=1):
        closest = torch.stack([(points - points[center]).square().sum(1) for center in centers[:step]]).amin(0)
        cumulative = closest.cumsum(0)
        candidates = [int((cumulative <= uniform * cumulative[-1]).sum()) for uniform in row]
        choices.append(
            {c: float(torch.minimum(closest, (points - points[c]).square().sum(1)).sum()) for c in candidates}
        )
    return choices
