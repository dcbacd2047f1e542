"""MoEfication (Zhang et al., Findings of ACL 2022): the neurons in experts, of which a router chooses."""

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

_SENTENCES = 32


@dataclass(frozen=True)
class MoEfication(TaskTraining):
    """Splits the neurons into experts and trains a router that chooses among them, token by token: routed.

    No weight changes, and all are stored; `keep_ratio` is the share of the neurons that count for a token. The others
    are masked, which saves no time. There are
    `num_experts` (0: 1 / `keep_ratio`, rounded), of which `keep_ratio` times as many are chosen. The router trains for
    `epochs` over up to `num_tokens` inputs of the block on the training data, `batch_size` tokens a step; labels are
    not looked at.
    """

    epochs: int = 30
    learning_rate: float = 0.01
    batch_size: int = 512
    num_experts: int = 0
    num_tokens: int = 16384

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_tokens", self.num_tokens, 1)
        if self.num_experts < 0:
            raise ValueError(f"`num_experts` must be at least 1, or 0 for 1 / keep_ratio, got {self.num_experts}")


def compress(job: TaskJob, config: MoEfication) -> list[Outcome]:
    """The blocks with their neurons in the order of the experts, and routers. The model of the job is left as it is.

    Experts come from balanced k-means on the rows, of length 1, of the linear map in front of the activation. Raises
    `InputError` if the experts cannot have one size, `keep_ratio` is no whole number of them, or act(0) is not 0.
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
        x = inputs.pop(site.path)[: config.num_tokens].to(mlp.up.dtype)
        with torch.no_grad():
            scores = expert_scores(grouped, x, num_experts)
        options = {name: getattr(config, name) for name in ("learning_rate", "epochs", "batch_size")}
        router = train_router(x, scores, centres, num_selected, generator=generator, **options)
        metrics = {"num_experts": num_experts, "num_selected": num_selected}
        metrics |= {"active_share": num_selected / num_experts, "router_accuracy": router.accuracy}
        metrics |= {"captured_score": router.captured, "router_epoch": router.epoch}
        outcomes.append(Routed(grouped, router.router_in, router.router_out, num_selected, metrics))
    job.progress(len(job.sites), len(job.sites), "")
    return outcomes


def _experts(job: TaskJob, config: MoEfication) -> tuple[int, int]:
    """How many experts there are, and how many compute."""
    num_experts = config.num_experts or round(1 / job.keep_ratio)
    num_selected = round(job.keep_ratio * num_experts)
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
    """The rows of the linear map in front of the activation, of length 1."""
    return normalize(mlp.up if mlp.gate is None else mlp.gate, dim=1)


def _batches(job: TaskJob, num_tokens: int) -> Sequence[Batch]:
    """Training examples in a random order, without labels, until there are enough tokens."""
    examples, chosen, total = job.data.train, [], 0
    order = torch.randperm(len(examples), generator=site_generator(job.seed, "examples of the routers"))
    for index in order.tolist():
        if total >= num_tokens:
            break
        chosen.append({name: value for name, value in examples[index].items() if name != "labels"})
        total += examples.lengths[index]
    chosen.sort(key=lambda item: len(item["input_ids"]))
    batches = [job.data.collate(chosen[start : start + _SENTENCES]) for start in range(0, len(chosen), _SENTENCES)]
    batches = with_decoder_inputs(batches, job.model.config)
    return [{name: value.to(job.model.device) for name, value in batch.items()} for batch in batches]
