"""GEM-MINER (Sreenivasan et al., Rare Gems, NeurIPS 2022) on pre-trained weights, in one epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlpfusion.checks import check_range
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.methods.masking import apply_mask, best_masks
from mlpfusion.methods.on_task.job import (
    Steps,
    TaskJob,
    TaskTraining,
    check_finite,
    frozen_last,
    train_only,
    weight_gradients,
)
from mlpfusion.mlp import MLP, copied
from mlpfusion.sites.sites import base_model, read_mlp, site_parameters

Matrices = dict[str, Tensor]


@dataclass(frozen=True)
class GemMiner(TaskTraining):
    """Trains a score for every weight, and no weight; the lowest scores go, in rounds: masked.

    The block computes with w round(q) for scores q in [0, 1], and the gradient of q is that of the product
    (straight-through), plus that of `regularization` |q|^2. Adam at `learning_rate` moves the scores, and at
    `head_learning_rate` the head, which is new and thrown away. After each of the first `rounds` of `rounds` + 1 equal
    parts the lowest of the scores that are left are frozen. Scores start between 0.5 and 0.5 + `spread` in the order of
    |w|, so that the first step sees the pre-trained model: the random start of the paper, made for random weights,
    would drop half of it. An epoch must not move them farther than that order can bear: rate times steps should stay
    well below `spread`.
    """

    epochs: int = 1
    learning_rate: float = 3e-4
    batch_size: int = 32
    rounds: int = 5
    head_learning_rate: float = 1e-3
    regularization: float = 1e-8
    spread: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rounds", self.rounds, 1)
        if not 0 < self.head_learning_rate < 1:
            raise ValueError(f"`head_learning_rate` must be above 0 and below 1, got {self.head_learning_rate}")
        check_range("regularization", self.regularization, 0)
        if not 0 < self.spread <= 0.5:
            raise ValueError(f"`spread` must be above 0 and at most 0.5, got {self.spread}")


def compress(job: TaskJob, config: GemMiner) -> list[Outcome]:
    """The pre-trained blocks with zeros where the scores were lowest, ranked over all sites together.

    After round k the share `keep_ratio`^(k / rounds) is left; what was frozen once stays. Of equal scores the earlier
    (block, matrix, row, column) go first. A weight that is left in the end stays even where its score fell below a
    half, so that the share is exact. The base model ends with the weights that it began with.
    """
    pretrained = [copied(read_mlp(job.model, site)) for site in job.sites]
    scores = initial_scores(pretrained, config.spread)
    kept = [{name: torch.ones_like(w, dtype=torch.bool) for name, w in block.items()} for block in scores]
    base = base_model(job.model)
    weights = [weight for site in job.sites for weight in site_parameters(base, site)]
    train_only(job.model, [*weights, *job.head_parameters()])
    optimizer = torch.optim.Adam(
        [
            {"params": [q for block in scores for q in block.values()], "lr": config.learning_rate},
            {"params": job.head_parameters(), "lr": config.head_learning_rate},
        ]
    )
    steps = Steps(job, config, max(config.rounds + 1, config.num_steps(job)))
    job.model.train()
    for round_, length in enumerate(steps.segments(config.rounds + 1)):
        if round_:
            kept = best_masks(frozen_last(scores, kept), job.keep_ratio ** (round_ / config.rounds))
            _set_weights(job, pretrained, scores, kept)
        for _ in steps.take(length):
            _set_gradients(job, pretrained, scores, kept, config.regularization)
            optimizer.step()
            for q in (q for block in scores for q in block.values()):
                q.clamp_(0, 1)
            _set_weights(job, pretrained, scores, kept)
        check_finite({name: q for block in scores for name, q in block.items()}, config.learning_rate)
    for site, mlp in zip(job.sites, pretrained, strict=True):
        _copy(read_mlp(job.model, site).matrices(), mlp.matrices())
    return [apply_mask(mlp, part) for mlp, part in zip(pretrained, kept, strict=True)]


def initial_scores(mlps: Sequence[MLP], spread: float) -> list[Matrices]:
    """0.5 + spread r / N for the weight with the r-th smallest of N magnitudes, over all matrices of `mlps`."""
    flat = torch.cat([w.abs().flatten() for mlp in mlps for w in mlp.matrices().values()])
    ranks = torch.empty_like(flat)
    ranks[flat.argsort(stable=True)] = torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device)
    scores = iter((0.5 + spread * ranks / len(flat)).split([w.numel() for m in mlps for w in m.matrices().values()]))
    return [{name: next(scores).view(w.shape).clone() for name, w in mlp.matrices().items()} for mlp in mlps]


@torch.no_grad()
def _set_gradients(
    job: TaskJob, pretrained: Sequence[MLP], scores: list[Matrices], kept: list[Matrices], regularization: float
) -> None:
    """The gradient of every score from that of the weight that it stands for, 0 where it is frozen."""
    for site, mlp, block, part in zip(job.sites, pretrained, scores, kept, strict=True):
        gradients = weight_gradients(job.model, site)
        for name, q in block.items():
            whole = gradients[name] * getattr(mlp, name) + 2 * regularization * q
            q.grad = torch.where(part[name], whole, 0.0)


@torch.no_grad()
def _set_weights(job: TaskJob, pretrained: Sequence[MLP], scores: list[Matrices], kept: list[Matrices]) -> None:
    """What the forward pass sees: the pre-trained weights whose score is above a half and not frozen."""
    for site, mlp, block, part in zip(job.sites, pretrained, scores, kept, strict=True):
        seen = {name: torch.where((q > 0.5) & part[name], getattr(mlp, name), 0.0) for name, q in block.items()}
        _copy(read_mlp(job.model, site).matrices(), seen)


@torch.no_grad()
def _copy(into: Matrices, values: Matrices) -> None:
    """Copies into tensors that share memory with the model."""
    for name, tensor in into.items():
        tensor.copy_(values[name])
