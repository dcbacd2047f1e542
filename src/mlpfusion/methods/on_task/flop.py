"""FLOP (Wang, Wohlwend & Lei, EMNLP 2020): low-rank factors whose rank is learned by gates, in one epoch."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlpfusion.checks import check_above_zero
from mlpfusion.kinds import low_rank
from mlpfusion.kinds.outcome import LowRank, Outcome
from mlpfusion.loop.steps import adamw
from mlpfusion.methods.block import factor_rank
from mlpfusion.methods.data_free.svd import truncated_svd
from mlpfusion.methods.on_task.hard_concrete import HardConcrete
from mlpfusion.methods.on_task.job import Steps, TaskJob, TaskTraining, check_finite, train_only
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.sites.sites import base_model, linear_maps, read_mlp


@dataclass(frozen=True)
class FLOP(TaskTraining):
    """Trains two factors a matrix and a gate for every rank until the size fits; ranks differ by matrix: low-rank.

    Factors (from the SVD, as large as the matrices) and head train at `learning_rate`, the gates at
    `gate_learning_rate`, all else stays. An augmented Lagrangian, whose multipliers ascend at
    `multiplier_learning_rate`, brings the expected size to the target, which falls to `keep_ratio` over the first half
    of the steps.
    """

    epochs: int = 1
    learning_rate: float = 1e-4
    batch_size: int = 32
    gate_learning_rate: float = 0.3
    multiplier_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("gate_learning_rate", self.gate_learning_rate)
        check_above_zero("multiplier_learning_rate", self.multiplier_learning_rate)


@dataclass(frozen=True)
class GatedMatrix:
    """One matrix as left diag(z) right: its factors in the model, the gates z between them, and what a rank costs."""

    left: nn.Linear
    right: nn.Linear
    gate: HardConcrete

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.left.out_features + self.right.in_features

    @property
    def size(self) -> int:
        """Entries of the matrix itself."""
        return self.left.out_features * self.right.in_features


@dataclass
class Constraint:
    """l1 (s^ - s) + l2 (s^ - s)^2 for the expected size s^ and the target s, in percent of the matrices' entries.

    The multipliers start at 0 and ascend by Adam.
    """

    matrices: Sequence[GatedMatrix]
    learning_rate: float
    multipliers: Tensor = field(init=False)

    def __post_init__(self):
        self.multipliers = torch.zeros(2, device=self.matrices[0].gate.log_alpha.device, requires_grad=True)
        self._ascent = torch.optim.Adam([self.multipliers], lr=self.learning_rate, maximize=True)

    def expected_size(self) -> Float[Tensor, ""]:
        """Expected parameters of the ranks whose gates are not 0, over the entries of all matrices."""
        expected = sum(one.cost * one.gate.open_probability().sum() for one in self.matrices)
        return torch.as_tensor(expected) / sum(one.size for one in self.matrices)

    def add_gradients(self, target: float) -> float:
        """Adds its gradients to those of the gates, and lets the multipliers ascend; returns its value."""
        self._ascent.zero_grad()
        excess = 100 * (self.expected_size() - target)
        value = self.multipliers[0] * excess + self.multipliers[1] * excess.square()
        value.backward()
        self._ascent.step()
        return float(value.detach())


def compress(job: TaskJob, config: FLOP) -> list[Outcome]:
    """The factors as learned, with the gates in them, at exactly the parameters that `SVD` has for the same ratio.

    Those ranks stay whose gates are largest over all sites, but at least one a matrix.
    """
    gated = insert_gates(job)
    matrices = [one for block in gated for one in block.values()]
    train_factors(job, matrices, config)
    sides = {"left": [one.left for one in matrices], "right": [one.right for one in matrices]}
    trained = {f"{side} factor {i}": one.weight.data for side, maps in sides.items() for i, one in enumerate(maps)}
    check_finite(trained | {"gates": torch.cat([one.gate.log_alpha.data for one in matrices])}, config.learning_rate)
    expected = float(Constraint(matrices, 1.0).expected_size().detach())
    kept = iter(largest_gates(matrices, _budget(job)))
    outcomes: list[Outcome] = []
    for block in gated:
        chosen = {name: next(kept) for name in block}
        factors = {name: folded(one, chosen[name]) for name, one in block.items()}
        outcomes.append(LowRank(factors, {"expected_size": expected}))
    return outcomes


def insert_gates(job: TaskJob) -> list[dict[str, GatedMatrix]]:
    """Puts factors of the parameter-neutral rank and gates into the model of the job: by site, then by matrix."""
    gated = []
    generator = torch.Generator().manual_seed(job.seed)
    for site in job.sites:
        rank = factor_rank(site.hidden_size, site.intermediate_size, 1.0)
        matrices = read_mlp(job.model, site).matrices()
        low_rank.install(job.model, site, LowRank({n: truncated_svd(w, rank)[:2] for n, w in matrices.items()}))
        block = {}
        for path, names in linear_maps(site).items():
            linear = base_model(job.model).get_submodule(path)
            assert isinstance(linear, LowRankLinear)
            for index, (name, (left, right)) in enumerate(zip(names, linear.pairs(), strict=True)):
                start = (0.01 * torch.randn(rank, generator=generator)).to(left.weight)
                gate = HardConcrete(start)
                linear.parts[index] = nn.Sequential(OrderedDict(right=right, gate=gate, left=left))
                block[name] = GatedMatrix(left, right, gate)
        gated.append({name: block[name] for name in matrices})
    return gated


def train_factors(job: TaskJob, matrices: Sequence[GatedMatrix], config: FLOP) -> list[float]:
    """Trains factors, gates and head, and returns the loss of every step, that of the constraint included."""
    weights = [w for one in matrices for w in (one.left.weight, one.right.weight)] + job.head_parameters()
    gates = [one.gate.log_alpha for one in matrices]
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
    """Which ranks of every matrix stay, ascending: as many as `ranks` sums up to, by the size of the gate.

    Matrices whose ranks cost the same are ranked together, so that the parameters are those of `ranks` exactly. The
    largest of a matrix always stays; of equal ones the first.
    """
    kept: dict[int, Tensor] = {}
    for cost in dict.fromkeys(one.cost for one in matrices):
        members = [index for index, one in enumerate(matrices) if one.cost == cost]
        gates = [matrices[index].gate.log_alpha.detach() for index in members]
        flat = torch.cat([gate.index_fill(0, gate.argmax(), float("inf")) for gate in gates])
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[flat.argsort(descending=True, stable=True)[: sum(ranks[index] for index in members)]] = True
        pieces = chosen.split([len(gate) for gate in gates])
        kept |= {index: piece.nonzero()[:, 0] for index, piece in zip(members, pieces, strict=True)}
    return [kept[index] for index in range(len(matrices))]


@torch.no_grad()
def folded(one: GatedMatrix, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The factors at the ranks that stay, the gates in the left one."""
    left = one.left.weight[:, kept] * one.gate.settled()[kept]
    return left.contiguous(), one.right.weight[kept].clone()


def _budget(job: TaskJob) -> list[int]:
    """The rank that `SVD` gives every matrix, in the order of sites and matrices."""
    ranks = []
    for site in job.sites:
        rank = factor_rank(site.hidden_size, site.intermediate_size, job.keep_ratio)
        ranks += [rank] * sum(len(names) for names in linear_maps(site).values())
    return ranks
