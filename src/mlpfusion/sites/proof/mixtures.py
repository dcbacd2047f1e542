"""What a mixture of experts takes in and gives in a run, and what its experts would give by a row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlpfusion.errors import InputError
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.recording import hooks
from mlpfusion.sites.sites import Site


@dataclass(frozen=True)
class SeenMixture:
    """One run of a module of experts: its arguments as transformers hands them over, and what it gave."""

    inputs: Float[Tensor, "tokens hidden"]
    chosen: Int[Tensor, "tokens choices"]
    weights: Float[Tensor, "tokens choices"]
    output: Float[Tensor, "tokens hidden"]


@contextmanager
def watch_mixtures(base: nn.Module, holders: Mapping[str, Sequence[Site]]) -> Iterator[dict[str, SeenMixture]]:
    """Records one run of the modules of experts that `holders` names, while the context is open.

    Those that did not run are not there at the end. A module that is called in another way than with inputs, the
    numbers of the experts and their weights raises `InputError` when it runs.
    """
    seen: dict[str, SeenMixture] = {}
    with hooks() as handles:
        for path in holders:
            module = base.get_submodule(path)
            handles.append(module.register_forward_hook(_keep_run(seen, path), with_kwargs=True))
        yield seen


def _keep_run(seen: dict[str, SeenMixture], path: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        if len(given) != 3 or given[1].shape != given[2].shape or given[1].is_floating_point():
            raise InputError(
                f"the experts at {path} must be called with inputs, the numbers of the experts and their weights, "
                "they are called in another way"
            )
        inputs, chosen, weights = given
        if len(inputs):
            tokens = inputs.reshape(-1, inputs.shape[-1])
            seen[path] = SeenMixture(tokens, chosen, weights, output.reshape(tokens.shape))

    return hook


@torch.no_grad()
def mixture_output(experts: Sequence[MLP], seen: SeenMixture) -> Float[Tensor, "tokens hidden"]:
    """What `experts` give for the recorded tokens: of every token the weighted sum over the experts chosen for it.

    A choice beyond the last expert counts as none.
    """
    output = torch.zeros_like(seen.inputs, dtype=torch.promote_types(seen.inputs.dtype, torch.float32))
    for number, expert in enumerate(experts):
        token, choice = torch.where(seen.chosen == number)
        given = forward(expert, seen.inputs[token]) * seen.weights[token, choice, None]
        output.index_add_(0, token, given.to(output.dtype))
    return output
