"""Single-point moves after Lloyd (Hartigan 1975), many a round.

Lloyd compares distances to centres as they are. Moving point x from cluster a (n_a points) to cluster b changes the
inertia by n_b / (n_b + 1) |x - c_b|^2 - n_a / (n_a - 1) |x - c_a|^2, since both centres move along. With many tiny
clusters the factors decide: joining a single point costs half the distance. On MLP neurons at a quarter of the width
this lowers the inertia of Lloyd by five percent, whatever the seeding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlpfusion.cluster.partition import Partition

MAX_ROUNDS = 2000


@dataclass(frozen=True)
class _Moves:
    """Moves that would each lower the inertia alone, best first.

    A move that is alone in its source (target) there gains the factor n_a / (n_a - 1) (n_b / (n_b + 1)). Without the
    factor it may share: removing points T and adding points S changes a cluster's sum of squares about its centre c by
    at most sum_S |y - c|^2 - sum_T |x - c|^2.
    """

    points: Int[Tensor, " moves"]
    sources: Int[Tensor, " moves"]
    targets: Int[Tensor, " moves"]
    alone_in_source: Bool[Tensor, " moves"]
    alone_in_target: Bool[Tensor, " moves"]


def refine(
    partition: Partition, max_rounds: int = MAX_ROUNDS
) -> tuple[Int[Tensor, " blocks"], Bool[Tensor, " blocks"]]:
    """Moves single points as long as that pays; returns the rounds of each block and whether no move is left.

    Every round lowers the inertia of each block that still has a move. A block's moves do not depend on other blocks.
    The result is also a fixed point of Lloyd.
    """
    costs = torch.empty_like(partition.distances)
    moving = torch.ones(partition.num_blocks, dtype=torch.bool, device=costs.device)
    rounds = torch.zeros_like(moving, dtype=torch.int64)
    for _ in range(max_rounds):
        moves = _improving_moves(partition, costs)
        moving = torch.zeros_like(moving).index_fill_(0, partition.block_of_point[moves.points], True)
        rounds += moving
        if not len(moves.points):
            break
        accepted = _compatible(moves, len(partition.counts))
        accepted &= _leaves_one(moves, accepted, partition.counts)
        partition.move(moves.points[accepted], moves.targets[accepted])
    return rounds, ~moving


def _improving_moves(partition: Partition, costs: Float[Tensor, "clusters points"]) -> _Moves:
    """For each point its cheapest other cluster, if going there pays; `costs` is work space."""
    counts = partition.counts.view(partition.num_blocks, -1)
    factors = (counts / (counts + 1)).T[..., None]
    shape = (*factors.shape[:2], -1)
    torch.mul(partition.distances.view(shape), factors, out=costs.view(shape))
    partition.set_own(costs, torch.inf)
    joining = costs.amin(0)
    leaving = partition.own(partition.distances)
    gains = _alone_leaving(leaving, partition.counts[partition.labels]) - joining
    points = (gains > partition.resolution).nonzero()[:, 0]
    points = points[gains[points].argsort(descending=True, stable=True)]
    targets = partition.best_clusters(costs, points)
    return _with_conditions(partition, points, targets, leaving[points], joining[points])


def _alone_leaving(leaving: Float[Tensor, " points"], counts: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """What the source saves when only this point leaves; nothing for a point that is a cluster of its own."""
    return torch.where(counts > 1, leaving * counts / (counts - 1), 0)


def _with_conditions(
    partition: Partition,
    points: Int[Tensor, " moves"],
    targets: Int[Tensor, " moves"],
    leaving: Float[Tensor, " moves"],
    joining: Float[Tensor, " moves"],
) -> _Moves:
    """Asks each move to be alone only where its gain needs that, preferably in the smaller cluster."""
    sources, resolution = partition.labels[points], partition.resolution[points]
    source_counts, target_counts = partition.counts[sources], partition.counts[targets]
    shared_joining = joining * (target_counts + 1) / target_counts
    pays_sharing = leaving - shared_joining > resolution
    pays_alone_in_source = _alone_leaving(leaving, source_counts) - shared_joining > resolution
    alone_in_target = ~pays_sharing & ((source_counts >= target_counts) | ~pays_alone_in_source)
    alone_in_source = leaving - torch.where(alone_in_target, joining, shared_joining) <= resolution
    return _Moves(points, sources, targets, alone_in_source, alone_in_target)


def _compatible(moves: _Moves, num_clusters: int) -> Bool[Tensor, " moves"]:
    """The moves whose gains add up: the best move of a cluster is alone there, or all that may share it go together.

    The best move of a block is the best of both its clusters, hence always among them.
    """
    ranks = torch.arange(len(moves.points), device=moves.points.device)
    first = ranks.new_full((num_clusters,), len(ranks))
    first.scatter_reduce_(0, moves.sources, ranks, "amin").scatter_reduce_(0, moves.targets, ranks, "amin")
    first_source, first_target = first[moves.sources] == ranks, first[moves.targets] == ranks
    taken = torch.zeros(num_clusters, dtype=torch.bool, device=ranks.device)
    taken[moves.sources[first_source & moves.alone_in_source]] = True
    taken[moves.targets[first_target & moves.alone_in_target]] = True
    may_leave = first_source | ~(moves.alone_in_source | taken[moves.sources])
    may_join = first_target | ~(moves.alone_in_target | taken[moves.targets])
    return may_leave & may_join


def _leaves_one(
    moves: _Moves, accepted: Bool[Tensor, " moves"], counts: Float[Tensor, " clusters"]
) -> Bool[Tensor, " moves"]:
    """False for all but the best move out of a cluster that the accepted ones would empty."""
    sources = moves.sources[accepted]
    leavers = torch.bincount(sources, minlength=len(counts))
    ranks = torch.arange(len(accepted), device=accepted.device)
    first = ranks.new_full((len(counts),), len(ranks)).scatter_reduce_(0, sources, ranks[accepted], "amin")
    return (leavers < counts)[moves.sources] | (first[moves.sources] == ranks)
