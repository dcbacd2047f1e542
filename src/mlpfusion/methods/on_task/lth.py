"""Iterative magnitude pruning with rewinding (Frankle & Carbin, ICLR 2019), in one epoch.

For pre-trained models by Chen et al., NeurIPS 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mlpfusion.checks import check_range
from mlpfusion.kinds.outcome import Outcome
from mlpfusion.kinds.table import install
from mlpfusion.loop.steps import adamw
from mlpfusion.methods.masking import apply_mask, best_masks
from mlpfusion.methods.on_task.job import Steps, TaskJob, TaskTraining, check_trained, frozen_last
from mlpfusion.mlp import clone
from mlpfusion.sites.sites import base_model, read_mlp


@dataclass(frozen=True)
class LTH(TaskTraining):
    """Trains all weights, zeroes the smallest, rewinds, and repeats: a winning lottery ticket.

    `rounds` rounds are equal parts of the training, each from the pre-trained weights under the
    mask so far, with a new AdamW. The head is new and is not rewound. `epochs` passes over the
    training data are made in all. `batch_size` is the number of examples a step. `learning_rate` is
    constant.

    >>> LTH(rounds=3).rounds
    3
    """

    epochs: int = 1
    learning_rate: float = 2e-5  # the published one for BERT; 1e-4 gave the same accuracy on SST-2
    batch_size: int = 32
    rounds: int = 5  # ten in the published procedure, with an epoch or more each; not tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("rounds", self.rounds, 1)


def compress(job: TaskJob, config: LTH) -> list[Outcome]:
    """Zeroes pre-trained weights with the smallest trained values, ranked over all sites.

    After round k the share `keep_ratio`^(k / rounds) is left; a zeroed weight stays zero.
    """
    base = base_model(job.model)
    start = {name: value.detach().clone() for name, value in base.named_parameters()}
    pretrained = [clone(read_mlp(job.model, site)) for site in job.sites]
    kept = [{name: torch.ones_like(w, dtype=torch.bool) for name, w in mlp.matrices().items()} for mlp in pretrained]
    steps = Steps(job, config, max(config.rounds, config.num_steps(job)))
    job.model.train()
    for round_, length in enumerate(steps.segments(config.rounds), start=1):
        optimizer = adamw(list(job.model.parameters()), config.learning_rate)
        for _ in steps.take(length):
            optimizer.step()
        check_trained(dict(base.named_parameters()), config.learning_rate)
        trained = [read_mlp(job.model, site).matrices() for site in job.sites]
        sizes = [{name: w.abs() for name, w in block.items()} for block in trained]
        kept = best_masks(frozen_last(sizes, kept), job.keep_ratio ** (round_ / config.rounds))
        _rewind(job, start)
        for site, mlp, part in zip(job.sites, pretrained, kept, strict=True):
            install(job.model, site, apply_mask(mlp, part))
    return [apply_mask(mlp, part) for mlp, part in zip(pretrained, kept, strict=True)]


@torch.no_grad()
def _rewind(job: TaskJob, start: dict[str, Tensor]) -> None:
    for name, value in base_model(job.model).named_parameters():
        value.copy_(start[name])
