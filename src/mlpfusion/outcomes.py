"""Runs a method on the blocks of a plan; the model is only read."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.architectures.sites import Site, read_mlp
from mlpfusion.methods import (
    LOW_RANK_METHODS,
    MASK_METHODS,
    LowRank,
    Masked,
    Narrowed,
    Outcome,
    budget_rank,
    factorise,
    mask,
    narrow,
)
from mlpfusion.mlp import MLP
from mlpfusion.plan import Plan

Progress = Callable[[int, int, str], None]


def compute_outcomes(
    model: PreTrainedModel, plan: Plan, method: Any, seed: int, device: torch.device, progress: Progress
) -> Sequence[Outcome]:
    """What `method` makes of every block of the plan, on the device of the model; the arithmetic is done on `device`.

    Raises `InputError` for what the method refuses.
    """
    if type(method) in LOW_RANK_METHODS:
        return _low_rank(model, plan, method, seed, device, progress)
    if type(method) in MASK_METHODS:
        return _masked(model, plan, method, seed, device, progress)
    return _narrowed(model, plan, method, seed, device, progress)


def site_generator(seed: int, path: str) -> torch.Generator:
    """The random stream of one site: it depends on the seed and the site alone, not on which others are compressed."""
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def _narrowed(
    model: PreTrainedModel, plan: Plan, method: Any, seed: int, device: torch.device, progress: Progress
) -> list[Narrowed]:
    narrowed = []
    for done, (site, num_neurons) in enumerate(plan.entries):
        progress(done, len(plan.entries), site.path)
        mlp = read_mlp(model, site)
        result = narrow(_to(mlp, device), num_neurons, method, site_generator(seed, site.path))
        narrowed.append(replace(result, mlp=_to(result.mlp, mlp.up.device)))
    progress(len(plan.entries), len(plan.entries), "")
    return narrowed


def _low_rank(
    model: PreTrainedModel, plan: Plan, method: Any, seed: int, device: torch.device, progress: Progress
) -> list[LowRank]:
    assert plan.keep_ratio is not None
    results = []
    for done, (site, _) in enumerate(plan.entries):
        progress(done, len(plan.entries), site.path)
        rank = budget_rank(site.hidden_size, site.intermediate_size, plan.keep_ratio)
        mlp = read_mlp(model, site)
        result = factorise(_to(mlp, device), rank, method, site_generator(seed, site.path))
        home = mlp.up.device
        factors = {name: (left.to(home), right.to(home)) for name, (left, right) in result.factors.items()}
        results.append(replace(result, factors=factors))
    progress(len(plan.entries), len(plan.entries), "")
    return results


def _masked(
    model: PreTrainedModel, plan: Plan, method: Any, seed: int, device: torch.device, progress: Progress
) -> list[Masked]:
    """All blocks in one call: a method may rank them together."""
    assert plan.keep_ratio is not None
    sites: list[Site] = [site for site, _ in plan.entries]
    progress(0, len(sites), sites[0].path)
    mlps = [read_mlp(model, site) for site in sites]
    generators = [site_generator(seed, site.path) for site in sites]
    results = mask([_to(mlp, device) for mlp in mlps], plan.keep_ratio, method, generators)
    progress(len(sites), len(sites), "")
    return [replace(result, mlp=_to(result.mlp, mlp.up.device)) for result, mlp in zip(results, mlps, strict=True)]


def _to(mlp: MLP, device: torch.device) -> MLP:
    tensors = dict(mlp.tensors())
    if mlp.output_scale is not None:
        tensors["output_scale"] = mlp.output_scale
    return replace(mlp, **{name: tensor.to(device) for name, tensor in tensors.items()})
