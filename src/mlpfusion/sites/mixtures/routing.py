"""Which tokens reach which expert of a mixture in a run, and with what weight."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.recording import differentiable, hooks


@dataclass(frozen=True)
class Routing:
    """The arguments of a module of experts: what enters it, and of every token the experts chosen and their weights."""

    inputs: Float[Tensor, "tokens hidden"]
    chosen: Int[Tensor, "tokens choices"]
    weights: Float[Tensor, "tokens choices"]

    def tensors(self) -> list[Tensor]:
        """All three, in their order."""
        return [self.inputs, self.chosen, self.weights]

    def of_expert(self, number: int) -> tuple[Int[Tensor, " reached"], Float[Tensor, " reached"]]:
        """The tokens that reach one expert, ascending, and its weight for each of them.

        >>> routing = Routing(torch.zeros(2, 3), torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2) / 2)
        >>> [one.tolist() for one in routing.of_expert(1)]
        [[0, 1], [0.5, 0.5]]
        """
        is_chosen = self.chosen == number
        tokens = is_chosen.any(1).nonzero().squeeze(1)
        return tokens, (self.weights * is_chosen).sum(1)[tokens]


@dataclass(frozen=True)
class RoutedTokens:
    """The tokens that enter a mixture, without those that a mask hides; `samples` names the sample of each.

    `cotangents` are the gradients of f at the output of the mixture, at the same tokens; None where none were recorded.
    """

    routing: Routing
    samples: Int[Tensor, " tokens"]
    cotangents: Float[Tensor, "tokens hidden"] | None = None

    def to(self, device: torch.device) -> "RoutedTokens":
        """The same on `device`."""
        cotangents = None if self.cotangents is None else self.cotangents.to(device)
        routing = Routing(*(one.to(device) for one in self.routing.tensors()))
        return RoutedTokens(routing, self.samples.to(device), cotangents)

    def trace_of(self, expert: int) -> tuple[BlockTrace, Float[Tensor, " reached"]] | None:
        """The trace of one expert, and its weight for each of the tokens; None if no token reaches it.

        The samples of the trace are those with such a token. Its cotangents are those of the mixture times the weight,
        or zeros that take no memory. The weights handed back are divided by their root mean square.
        """
        tokens, weights = self.routing.of_expert(expert)
        if not len(tokens):
            return None
        inputs = self.routing.inputs[tokens]
        lengths = self.samples[tokens].unique_consecutive(return_counts=True)[1]
        if self.cotangents is None:
            cotangents = inputs.new_zeros(1, 1).expand_as(inputs)
        else:
            cotangents = self.cotangents[tokens] * weights[:, None].to(self.cotangents.dtype)
        trace = BlockTrace(inputs, cotangents, lengths)
        scale = weights.double().square().mean().sqrt()
        return trace, weights / scale.to(weights.dtype) if scale > 0 else torch.ones_like(weights)


def called_routing(path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Routing:
    """The routing in the arguments that the module of experts at `path` was called with.

    Raises `InputError` for others than inputs, the numbers of the experts and their weights.
    """
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if len(given) == 3 and given[1].ndim == given[2].ndim + 1:
        given[1] = _numbers(given[1])
    if len(given) != 3 or given[1].shape != given[2].shape or given[1].is_floating_point():
        raise InputError(
            f"the experts at {path} must be called with inputs, the numbers of the experts and their weights, "
            "they are called in another way"
        )
    inputs, chosen, weights = given
    return Routing(inputs.reshape(-1, inputs.shape[-1]), chosen, weights)


def _numbers(marks: Int[Tensor, "tokens choices experts"]) -> Int[Tensor, "tokens choices"]:
    """The numbers of the experts that are marked, beyond the last where none is: Switch drops tokens beyond a capacity.

    >>> _numbers(torch.tensor([[[0, 1]], [[0, 0]]])).tolist()
    [[1], [2]]
    """
    return torch.where(marks.any(-1), marks.int().argmax(-1), marks.shape[-1])


@torch.no_grad()
def mixture_output(experts: Sequence[MLP], routing: Routing) -> Float[Tensor, "tokens hidden"]:
    """What `experts` give together: of every token the weighted sum over the experts chosen for it, in fp32 or better.

    A choice beyond the last expert counts as none.
    """
    compute = torch.promote_types(routing.inputs.dtype, torch.float32)
    output = torch.zeros_like(routing.inputs, dtype=compute)
    for number, expert in enumerate(experts):
        tokens, weights = routing.of_expert(number)
        output.index_add_(0, tokens, (forward(expert, routing.inputs[tokens]) * weights[:, None]).to(compute))
    return output


@dataclass(frozen=True)
class SeenMixture:
    """The last run of a module of experts: how it was called, what it gave, and the number of runs until then."""

    routing: Routing
    output: Float[Tensor, "tokens hidden"]
    runs: int = 1


@contextmanager
def watch_mixtures(base: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, SeenMixture]]:
    """Records one run of the modules of experts at `paths`, while the context is open.

    Where gradients are on, one can be taken by the output. Those that did not run on any token are not there at the
    end. Raises `InputError` as `called_routing` does.
    """
    seen: dict[str, SeenMixture] = {}
    with hooks() as handles:
        for path in paths:
            module = base.get_submodule(path)
            handles.append(module.register_forward_hook(_keep_run(seen, path), with_kwargs=True))
        yield seen


def _keep_run(seen: dict[str, SeenMixture], path: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        routing = called_routing(path, args, kwargs)
        kept = differentiable(output).reshape(routing.inputs.shape)
        if len(routing.inputs):
            seen[path] = SeenMixture(routing, kept, seen[path].runs + 1 if path in seen else 1)
        return kept.reshape(output.shape).clone()  # whoever adds to it in place does not change what is kept

    return hook
