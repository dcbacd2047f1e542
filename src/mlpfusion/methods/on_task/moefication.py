"""MoEfication (Zhang et al., Findings of ACL 2022): neurons split into experts, and a router."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checks import check_range
from mlpfusion.errors import InputError
from mlpfusion.kinds.outcome import Outcome, Routed
from mlpfusion.methods.on_task.experts import balanced_clusters
from mlpfusion.methods.on_task.job import TaskJob, TaskTraining
from mlpfusion.methods.on_task.router import expert_scores, train_router
from mlpfusion.mlp import MLP, select_neurons
from mlpfusion.seeds import site_generator
from mlpfusion.sites.sites import Site, read_mlp
from mlpfusion.sites.traces import mlp_inputs

_SENTENCES = 32  # texts in a forward pass, sorted by length; not tuned


@dataclass(frozen=True)
class MoEfication(TaskTraining):
    """Splits the neurons into experts and trains a router to choose among them for each token.

    No weight changes, and all are stored; `keep_ratio` is the share of the neurons active for a
    token. The others are masked, which saves no time. `num_experts` is the number of experts (0: 1
    / `keep_ratio`, rounded), of which `keep_ratio` times as many are active. The router trains on
    inputs of the block from the training data, without labels. `num_tokens` is the largest number
    of inputs. `epochs` passes over the inputs are made. `batch_size` is the number of tokens a
    step. `learning_rate` is the rate of Adam.

    >>> MoEfication(num_experts=16).epochs
    30
    """

    epochs: int = 30  # epochs, rate and batch size of the published code
    learning_rate: float = 0.01
    batch_size: int = 512
    num_experts: int = 0
    num_tokens: int = 16384  # not tuned

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_tokens", self.num_tokens, 1)
        if self.num_experts < 0:
            raise ValueError(f"`num_experts` must be at least 1, or 0 for 1 / keep_ratio, got {self.num_experts}")


def compress(job: TaskJob, config: MoEfication) -> list[Outcome]:
    """Orders the neurons by expert and trains the routers. The model of the job does not change.

    Experts are balanced clusters of the normalised rows of the map before the activation. Raises
    `InputError` if the experts cannot have one size, `keep_ratio` is no whole number of experts, or
    act(0) is not 0.
    """
    num_experts, num_selected = _experts(job, config)
    batches = _batches(job, config.num_tokens)
    with torch.no_grad():
        inputs = mlp_inputs(job.model, job.sites, batches)
    outcomes: list[Outcome] = []
    for done, site in enumerate(job.sites):
        job.progress(done, len(job.sites), site.path)
        mlp, generator = read_mlp(job.model, site), site_generator(job.seed, site.path)
        labels, centres = balanced_clusters(_rows(mlp), num_experts, generator)
        grouped = select_neurons(mlp, labels.argsort(stable=True))
        x = inputs.pop(site.path)[: config.num_tokens].to(mlp.up)
        with torch.no_grad():
            scores = expert_scores(grouped, x, num_experts)
        router = train_router(
            x,
            scores,
            centres,
            num_selected,
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            generator=generator,
        )
        metrics = {"num_experts": num_experts, "num_selected": num_selected}
        metrics |= {"active_share": num_selected / num_experts, "router_accuracy": router.accuracy}
        metrics |= {"captured_score": router.captured, "router_epoch": router.epoch}
        outcomes.append(Routed(grouped, router.router_in, router.router_out, num_selected, metrics))
    job.progress(len(job.sites), len(job.sites), "")
    return outcomes


def _experts(job: TaskJob, config: MoEfication) -> tuple[int, int]:
    """Returns the number of experts and the number of active ones."""
    num_experts = config.num_experts or round(1 / job.keep_ratio)
    num_selected = round(job.keep_ratio * num_experts)
    # 1e-6: shares like 0.333333 count as 1/3
    if num_selected < 1 or abs(num_selected - job.keep_ratio * num_experts) > 1e-6 * num_experts:
        near = max(1, num_selected)
        raise InputError(
            f"`keep_ratio` must be a whole number of {num_experts} experts, "
            f"like {near}/{num_experts} = {near / num_experts:.6g}, got {job.keep_ratio}"
        )
    for site in job.sites:
        if site.intermediate_size % num_experts:
            raise InputError(
                f"`num_experts` must divide the {site.intermediate_size} neurons of {site.path}, got {num_experts}"
            )
        _check_activation(job, site)
    return num_experts, num_selected


def _check_activation(job: TaskJob, site: Site) -> None:
    mlp = read_mlp(job.model, site)
    at_zero = float(mlp.activation(torch.zeros(1, device=mlp.up.device, dtype=mlp.up.dtype)))
    if at_zero != 0:
        raise InputError(
            f"the activation at {site.path} must be 0 at 0, so that a neuron can be switched off, got {at_zero:g}"
        )


def _rows(mlp: MLP) -> Tensor:
    """Rows of the map before the activation, normalised to length 1."""
    return normalize(mlp.up if mlp.gate is None else mlp.gate, dim=1)


def _batches(job: TaskJob, num_tokens: int) -> Sequence[Batch]:
    """Samples training examples, without labels, until there are enough tokens."""
    examples, sample, total = job.data.train, [], 0
    order = torch.randperm(len(examples), generator=site_generator(job.seed, "examples of the routers"))
    for index in order.tolist():
        if total >= num_tokens:
            break
        sample.append({name: value for name, value in examples[index].items() if name != "labels"})
        total += examples.lengths[index]
    sample.sort(key=lambda item: len(item["input_ids"]))
    batches = [job.data.collate(sample[start : start + _SENTENCES]) for start in range(0, len(sample), _SENTENCES)]
    batches = with_decoder_inputs(batches, job.model.config)
    return [{name: value.to(job.model.device) for name, value in batch.items()} for batch in batches]
