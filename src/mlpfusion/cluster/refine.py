"""Single-point moves after Lloyd (Hartigan 1975), many a round.

Lloyd compares distances to centres as they are. Moving point x from cluster a (n_a points) to
cluster b changes the inertia by

    n_b / (n_b + 1) |x - c_b|^2 - n_a / (n_a - 1) |x - c_a|^2,

since both centres move along. With many tiny clusters the factors decide: joining a single point
costs half the distance. On MLP neurons at a quarter of the width the moves lower the inertia of
Lloyd by five percent, whatever the seeding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlpfusion.cluster.partition import Partition

# A stop for an endless loop, far above the rounds that real layers need. Not tuned.
MAX_ROUNDS = 2000


@dataclass(frozen=True)
class Moves:
    """Moves from `sources` to `targets`, best first, each lowering the inertia if made alone.

    `alone_in_source[i]`: move i pays only if no other point leaves or joins its source in this
    round; only then may it count the factor n_a / (n_a - 1). `alone_in_target` likewise for the
    target and n_b / (n_b + 1). Moves that pay without the factors may share clusters: removing
    points T and adding points S changes a cluster's sum of squares about its centre c by at most
    sum_S |y - c|^2 - sum_T |x - c|^2.
    """

    points: Int[Tensor, " moves"]
    sources: Int[Tensor, " moves"]
    targets: Int[Tensor, " moves"]
    alone_in_source: Bool[Tensor, " moves"]
    alone_in_target: Bool[Tensor, " moves"]

    def select(self, indices: Int[Tensor, " selected"]) -> "Moves":
        """Returns the moves at `indices`."""
        return Moves(
            points=self.points[indices],
            sources=self.sources[indices],
            targets=self.targets[indices],
            alone_in_source=self.alone_in_source[indices],
            alone_in_target=self.alone_in_target[indices],
        )


def refine(
    partition: Partition, tol: float = 0.0, max_rounds: int = MAX_ROUNDS
) -> tuple[Int[Tensor, " blocks"], Bool[Tensor, " blocks"]]:
    """Moves single points while the inertia falls. Changes `partition`.

    Returns the rounds and the convergence of each block. Every round lowers the inertia of each
    block with a move left. A block ends when it has none (then it is a fixed point of Lloyd too),
    or when a round lowers its inertia by at most `tol` times the inertia. Its moves do not depend
    on other blocks.

    >>> from mlpfusion.cluster.gram import GramSpace
    >>> space = GramSpace.from_points([torch.tensor([[0.0], [1.0], [9.0], [10.0]])])
    >>> partition = Partition(space, torch.tensor([[0, 1, 0, 1]]), 2)
    >>> rounds, converged = refine(partition)
    >>> partition.inertia().tolist(), converged.tolist()
    ([1.0], [True])
    """
    costs = torch.empty_like(partition.distances)
    active = torch.ones(partition.num_blocks, dtype=torch.bool, device=costs.device)
    rounds = torch.zeros_like(active, dtype=torch.int64)
    inertia = partition.inertia()
    for _ in range(max_rounds):
        moves = _improving_moves(partition, costs, active)
        active = torch.zeros_like(active).index_fill_(0, partition.block_of_point[moves.points], True)
        if not len(moves.points):
            break
        rounds += active
        made = compatible(moves, len(partition.counts))
        made &= _leaves_one(moves, made, partition.counts)
        partition.move(moves.points[made], moves.targets[made])
        before, inertia = inertia, partition.inertia()
        active &= before - inertia > tol * inertia
    return rounds, ~active


def _improving_moves(
    partition: Partition, costs: Float[Tensor, "clusters points"], active: Bool[Tensor, " blocks"]
) -> Moves:
    """Finds for each point of an active block its cheapest other cluster, if moving pays.

    `costs` is work space.
    """
    counts = partition.counts.view(partition.num_blocks, -1)
    factors = (counts / (counts + 1)).T[..., None]
    shape = (*factors.shape[:2], -1)
    # joining cluster b costs n_b / (n_b + 1) |x - c_b|^2
    torch.mul(partition.distances.view(shape), factors, out=costs.view(shape))
    partition.set_own(costs, torch.inf)
    joining = costs.amin(0)
    leaving = partition.own(partition.distances)
    gains = _alone_leaving(leaving, partition.counts[partition.labels]) - joining
    points = ((gains > partition.resolution) & active[partition.block_of_point]).nonzero()[:, 0]
    points = points[gains[points].argsort(descending=True, stable=True)]
    targets = partition.best_clusters(costs, points)
    return _with_conditions(partition, points, targets, leaving[points], joining[points])


def _alone_leaving(leaving: Float[Tensor, " points"], counts: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
    """Computes n_a / (n_a - 1) |x - c_a|^2, the saving if x leaves alone; 0 for a singleton."""
    return torch.where(counts > 1, leaving * counts / (counts - 1), 0)


def _with_conditions(
    partition: Partition,
    points: Int[Tensor, " moves"],
    targets: Int[Tensor, " moves"],
    leaving: Float[Tensor, " moves"],
    joining: Float[Tensor, " moves"],
) -> Moves:
    """Requires a move to be alone only where needed, preferably in the smaller cluster."""
    sources, resolution = partition.labels[points], partition.resolution[points]
    source_counts, target_counts = partition.counts[sources], partition.counts[targets]
    shared_joining = joining * (target_counts + 1) / target_counts
    pays_sharing = leaving - shared_joining > resolution
    pays_alone_in_source = _alone_leaving(leaving, source_counts) - shared_joining > resolution
    alone_in_target = ~pays_sharing & ((source_counts >= target_counts) | ~pays_alone_in_source)
    alone_in_source = leaving - torch.where(alone_in_target, joining, shared_joining) <= resolution
    return Moves(points, sources, targets, alone_in_source, alone_in_target)


def compatible(moves: Moves, num_clusters: int) -> Bool[Tensor, " moves"]:
    """Selects moves with additive gains: the best of a cluster, or all allowed to share.

    The best move of a block is the best of both its clusters, hence always among them.
    """
    made = _best_of_both_clusters(moves, num_clusters)
    # A second pass over the moves between clusters still untouched saves a quarter of the rounds.
    touched = torch.zeros(num_clusters, dtype=torch.bool, device=made.device)
    touched[moves.sources[made]] = True
    touched[moves.targets[made]] = True
    rest = (~(touched[moves.sources] | touched[moves.targets])).nonzero()[:, 0]
    made[rest] = _best_of_both_clusters(moves.select(rest), num_clusters)
    return made


def _best_of_both_clusters(moves: Moves, num_clusters: int) -> Bool[Tensor, " moves"]:
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
    moves: Moves, made: Bool[Tensor, " moves"], counts: Float[Tensor, " clusters"]
) -> Bool[Tensor, " moves"]:
    """Drops all but the best move out of a cluster about to be emptied."""
    sources = moves.sources[made]
    leavers = torch.bincount(sources, minlength=len(counts))
    ranks = torch.arange(len(made), device=made.device)
    first = ranks.new_full((len(counts),), len(ranks)).scatter_reduce_(0, sources, ranks[made], "amin")
    return (leavers < counts)[moves.sources] | (first[moves.sources] == ranks)
