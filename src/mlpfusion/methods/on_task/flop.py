"""FLOP (Wang, Wohlwend & Lei, EMNLP 2020) in one epoch: low-rank factors with learned ranks."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlpfusion.checks import check_above_zero
from mlpfusion.kinds.low_rank import LowRankLinear
from mlpfusion.kinds.outcome import LowRank, Outcome
from mlpfusion.kinds.table import install
from mlpfusion.loop.steps import adamw
from mlpfusion.methods.block import factor_rank
from mlpfusion.methods.data_free.svd import truncated_svd
from mlpfusion.methods.on_task.hard_concrete import HardConcrete
from mlpfusion.methods.on_task.job import Steps, TaskJob, TaskTraining, check_trained, train_only
from mlpfusion.sites.sites import base_model, linear_maps, read_mlp


@dataclass(frozen=True)
class FLOP(TaskTraining):
    """Trains two factors a matrix and a gate for each rank, until the size fits.

    Ranks differ by matrix. The factors start at the SVD, as large as the matrices. Factors and head
    train at `learning_rate`. Gates train at `gate_learning_rate`. Nothing else trains. An augmented
    Lagrangian brings the expected size to a target, falling to `keep_ratio` over the first half of
    the steps. The multipliers of the Lagrangian ascend at `multiplier_learning_rate`. `epochs`
    passes over the training data are made. `batch_size` is the number of examples a step.

    >>> FLOP().epochs
    1
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    batch_size: int = 32
    gate_learning_rate: float = 0.3  # not tuned
    multiplier_learning_rate: float = 1e-4  # not tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("gate_learning_rate", self.gate_learning_rate)
        check_above_zero("multiplier_learning_rate", self.multiplier_learning_rate)


@dataclass(frozen=True)
class GatedMatrix:
    """One matrix as left diag(z) right: two factors in the model, and the gates z."""

    left: nn.Linear
    right: nn.Linear
    gate: HardConcrete

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.left.out_features + self.right.in_features

    @property
    def size(self) -> int:
        """Entries of the dense matrix."""
        return self.left.out_features * self.right.in_features


@dataclass
class Constraint:
    """l1 (s^ - s) + l2 (s^ - s)^2 with expected size s^ and target s, in percent.

    The multipliers l1 and l2 start at 0 and ascend by Adam. As shares instead of percents, the
    quadratic term is too weak to damp them: the size overshot by a factor of 2 to 10 (decision
    007).
    """

    matrices: Sequence[GatedMatrix]
    learning_rate: float
    multipliers: Tensor = field(init=False)

    def __post_init__(self):
        self.multipliers = torch.zeros(2, device=self.matrices[0].gate.log_alpha.device, requires_grad=True)
        self._ascent = torch.optim.Adam([self.multipliers], lr=self.learning_rate, maximize=True)

    def expected_size(self) -> Float[Tensor, ""]:
        """Expected parameters of the open ranks, over the entries of all matrices."""
        expected = sum(matrix.cost * matrix.gate.open_probability().sum() for matrix in self.matrices)
        return torch.as_tensor(expected) / sum(matrix.size for matrix in self.matrices)

    def add_gradients(self, target: float) -> float:
        """Adds its gradients to the gates', and lets the multipliers ascend. Returns its value."""
        self._ascent.zero_grad()
        excess = 100 * (self.expected_size() - target)
        value = self.multipliers[0] * excess + self.multipliers[1] * excess.square()
        value.backward()
        self._ascent.step()
        return float(value.detach())


def compress(job: TaskJob, config: FLOP) -> list[Outcome]:
    """Trains gated factors and keeps the ranks with the largest gates, as many parameters as `SVD`.

    Gates are ranked over all sites; every matrix keeps at least one rank. The gates are folded into
    the factors.
    """
    gated = insert_gates(job)
    matrices = [matrix for block in gated for matrix in block.values()]
    train_factors(job, matrices, config)
    sides = {"left": [matrix.left for matrix in matrices], "right": [matrix.right for matrix in matrices]}
    trained = {f"{side} factor {i}": map_.weight.data for side, maps in sides.items() for i, map_ in enumerate(maps)}
    trained["gates"] = torch.cat([matrix.gate.log_alpha.data for matrix in matrices])
    check_trained(trained, config.learning_rate)
    expected = float(Constraint(matrices, 1.0).expected_size().detach())
    ranks = iter(largest_gates(matrices, _budget(job)))
    outcomes: list[Outcome] = []
    for block in gated:
        factors = {name: folded(matrix, next(ranks)) for name, matrix in block.items()}
        outcomes.append(LowRank(factors, {"expected_size": expected}))
    return outcomes


def insert_gates(job: TaskJob) -> list[dict[str, GatedMatrix]]:
    """Replaces the matrices in the job's model by gated factors, by site and name.

    The rank is parameter-neutral: two factors have as many entries as the matrix.
    """
    gated = []
    generator = torch.Generator().manual_seed(job.seed)
    for site in job.sites:
        rank = factor_rank(site.hidden_size, site.intermediate_size, 1.0)
        matrices = read_mlp(job.model, site).matrices()
        install(job.model, site, LowRank({n: truncated_svd(w, rank)[:2] for n, w in matrices.items()}))
        block = {}
        for path, names in linear_maps(site).items():
            linear = base_model(job.model).get_submodule(path)
            assert isinstance(linear, LowRankLinear)
            for index, (name, (left, right)) in enumerate(zip(names, linear.pairs(), strict=True)):
                # log_alpha near 0, gates open with probability 0.92; the noise (size not tuned)
                # breaks ties of ranks
                start = (0.01 * torch.randn(rank, generator=generator)).to(left.weight)
                gate = HardConcrete(start)
                linear.parts[index] = nn.Sequential(OrderedDict(right=right, gate=gate, left=left))
                block[name] = GatedMatrix(left, right, gate)
        gated.append({name: block[name] for name in matrices})
    return gated


def train_factors(job: TaskJob, matrices: Sequence[GatedMatrix], config: FLOP) -> list[float]:
    """Trains factors, gates and head. Returns the loss of every step, constraint included."""
    weights = [w for matrix in matrices for w in (matrix.left.weight, matrix.right.weight)] + job.head_parameters()
    gates = [matrix.gate.log_alpha for matrix in matrices]
    train_only(job.model, [*weights, *gates])
    optimizers = adamw(weights, config.learning_rate), torch.optim.Adam(gates, lr=config.gate_learning_rate)
    constraint = Constraint(matrices, config.multiplier_learning_rate)
    steps, losses = Steps(job, config, config.num_steps(job)), []
    start = float(constraint.expected_size().detach())
    job.model.train()
    for step in steps.take(steps.num_steps):
        progress = min(1.0, 2 * step / steps.num_steps)
        losses.append(steps.losses[-1] + constraint.add_gradients(start + progress * (job.keep_ratio - start)))
        for optimizer in optimizers:
            optimizer.step()
    return losses


def largest_gates(matrices: Sequence[GatedMatrix], ranks: Sequence[int]) -> list[Tensor]:
    """Returns the ranks to keep in every matrix, ascending: those with the largest gates.

    As many as `ranks` sums to. Matrices with equal costs are ranked together, so that the
    parameters are exactly those of `ranks`. The largest gate of a matrix is always kept; ties go to
    the first.
    """
    largest: dict[int, Tensor] = {}
    for cost in dict.fromkeys(matrix.cost for matrix in matrices):
        members = [index for index, matrix in enumerate(matrices) if matrix.cost == cost]
        gates = [matrices[index].gate.log_alpha.detach() for index in members]
        flat = torch.cat([gate.index_fill(0, gate.argmax(), float("inf")) for gate in gates])
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[flat.argsort(descending=True, stable=True)[: sum(ranks[index] for index in members)]] = True
        pieces = mask.split([len(gate) for gate in gates])
        largest |= {index: piece.nonzero()[:, 0] for index, piece in zip(members, pieces, strict=True)}
    return [largest[index] for index in range(len(matrices))]


@torch.no_grad()
def folded(matrix: GatedMatrix, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Multiplies the left factor by the gates, at the ranks kept."""
    left = matrix.left.weight[:, ranks] * matrix.gate.settled()[ranks]
    return left.contiguous(), matrix.right.weight[ranks].clone()


def _budget(job: TaskJob) -> list[int]:
    """Rank given to every matrix by `SVD`, in the order of sites and matrices."""
    ranks = []
    for site in job.sites:
        rank = factor_rank(site.hidden_size, site.intermediate_size, job.keep_ratio)
        ranks += [rank] * sum(len(names) for names in linear_maps(site).values())
    return ranks
