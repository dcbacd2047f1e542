"""Whole experts of a mixture dropped or merged, to place beside experts that are made narrower.

Experts are dropped by REAP's score (Lasby et al., 2025: the mean, over the tokens of an expert, of its weight times the
length of its output) or merged as by M-SMoE (Li et al., ICLR 2024: the most used experts stay, the others join the one
whose router scores go with theirs, weights averaged by use). Mixtures are those of Mixtral and of Qwen3-MoE: tensors
that hold all experts, and a `gate` beside them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mlpfusion.batch import Batch
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import Routing, watch_mixtures
from mlpfusion.sites.sites import base_model, by_block, find_sites, read_mlp

DROP, MERGE = "drop experts (REAP)", "merge experts (M-SMoE)"


@dataclass(frozen=True)
class Mixture:
    """One mixture on some text: its experts, and how their module was called."""

    experts: list[MLP]
    routing: Routing

    @property
    def uses(self) -> Tensor:
        """Number of tokens that reach each expert."""
        return torch.stack([(self.routing.chosen == number).any(1).sum() for number in range(len(self.experts))])


def routings(model: Any, batches: Sequence[Batch]) -> dict[str, Routing]:
    """How all mixtures of the model are called on the batches, by path, without the tokens that a mask hides."""
    holders, found = by_block(find_sites(model, find_architecture(model))), dict[str, list[Routing]]()
    for batch in batches:
        with torch.no_grad(), watch_mixtures(base_model(model), holders) as seen:
            base_model(model)(**batch)
        is_read = batch["attention_mask"].flatten().bool()
        for path, one in seen.items():
            called = one.routing
            kept = Routing(called.inputs[is_read], called.chosen[is_read], called.weights[is_read])
            found.setdefault(path, []).append(kept)
    return {
        path: Routing(
            torch.cat([one.inputs for one in parts]),
            torch.cat([one.chosen for one in parts]),
            torch.cat([one.weights for one in parts]),
        )
        for path, parts in found.items()
    }


def mixtures(model: Any, batches: Sequence[Batch]) -> dict[str, Mixture]:
    """All mixtures of the model on the batches, by path."""
    holders = by_block(find_sites(model, find_architecture(model)))
    return {
        path: Mixture([read_mlp(model, site) for site in holders[path]], routing)
        for path, routing in routings(model, batches).items()
    }


def router(model: Any, path: str) -> Tensor:
    """The scores of the mixture at `path`, a row an expert."""
    return base_model(model).get_parameter(f"{path.removesuffix('.experts')}.gate.weight")


def reap_scores(mixture: Mixture) -> Tensor:
    """The score of every expert."""
    scores = []
    for number, expert in enumerate(mixture.experts):
        tokens, weights = mixture.routing.of_expert(number)
        lengths = forward(expert, mixture.routing.inputs[tokens]).norm(dim=1)
        scores.append((weights * lengths).mean() if len(tokens) else torch.tensor(0.0))
    return torch.stack(scores)


@torch.no_grad()
def with_experts_dropped(model: Any, batches: Sequence[Batch], number: int) -> Any:
    """A copy with the `number` experts of every mixture that have the highest score."""
    config = copy.deepcopy(model.config)
    config.num_local_experts = number
    small: Any = type(model)(config).eval()
    state = dict(model.state_dict())
    for path, mixture in mixtures(model, batches).items():
        kept = reap_scores(mixture).topk(number).indices.sort().values
        holder = f"{model.base_model_prefix}.{path}"
        for name in (f"{holder}.gate_up_proj", f"{holder}.down_proj", f"{holder.removesuffix('.experts')}.gate.weight"):
            state[name] = state[name][kept]
    small.load_state_dict(state)
    return small


@torch.no_grad()
def with_experts_merged(model: Any, batches: Sequence[Batch], number: int) -> Any:
    """A copy in which the experts of a group are one and the same; `number` groups a mixture.

    In training they stay the same: every expert of a group gets the gradient of the group.
    """
    merged = copy.deepcopy(model)
    for path, mixture in mixtures(model, batches).items():
        groups = _groups(mixture, router(model, path), number)
        for tensor in base_model(merged).get_submodule(path).parameters():
            for group in groups:
                shares = mixture.uses[group].clamp_min(1) / mixture.uses[group].clamp_min(1).sum()
                tensor[group] = (tensor[group] * shares[:, None, None]).sum(0)
            tensor.register_hook(_Summed(groups))
    return merged


def _groups(mixture: Mixture, rows: Tensor, number: int) -> list[list[int]]:
    """The experts that become one, the most used first."""
    leaders, scores = mixture.uses.float().topk(number).indices, mixture.routing.inputs @ rows.T
    groups = [[int(leader)] for leader in leaders]
    for expert in sorted(set(range(len(rows))) - set(leaders.tolist())):
        near = cosine_similarity(scores[:, expert, None], scores[:, leaders], dim=0)
        groups[int(near.argmax())].append(expert)
    return groups


@dataclass(frozen=True)
class _Summed:
    """Gives every expert of a group the sum of their gradients."""

    groups: list[list[int]]

    def __call__(self, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        for group in self.groups:
            summed[group] = gradient[group].sum(0)
        return summed


def first_numbers(model: Any, small: Any) -> dict[str, Tensor]:
    """What number in `model` every expert of `small` has, by mixture, told by its row of the router."""
    paths = by_block(find_sites(small, find_architecture(small)))
    same = {path: (router(small, path)[:, None] == router(model, path)[None]).all(2) for path in paths}
    assert all((one.sum(1) == 1).all() for one in same.values())
    return {path: one.int().argmax(1) for path, one in same.items()}
