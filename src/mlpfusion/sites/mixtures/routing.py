"""Which tokens reach which expert of a mixture in a run, and with what weight."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.mixtures.experts import num_experts
from mlpfusion.sites.recording import differentiable, hooks


@dataclass(frozen=True)
class Routing:
    """The arguments of a module of experts: what enters it, and of every row the experts chosen and their weights.

    A row is a token. Llama 4 multiplies by the weights before the experts: all its tokens enter once for every expert,
    `copies` times one after the other. Such a row is of one expert, with weight 1, or of none where it is all zeros.
    """

    inputs: Float[Tensor, "rows hidden"]
    chosen: Int[Tensor, "rows choices"]
    weights: Float[Tensor, "rows choices"]
    copies: int = 1

    def tensors(self) -> list[Tensor]:
        """All three, in their order."""
        return [self.inputs, self.chosen, self.weights]

    def rows_of_tokens(self) -> Int[Tensor, "tokens copies"]:
        """The numbers of the rows of every token.

        >>> Routing(torch.ones(4, 1), torch.ones(4, 1).int(), torch.ones(4, 1), copies=2).rows_of_tokens().tolist()
        [[0, 2], [1, 3]]
        """
        return torch.arange(len(self.inputs), device=self.inputs.device).unflatten(0, (self.copies, -1)).T

    def is_of_expert(self, rows: Int[Tensor, "tokens copies"]) -> Bool[Tensor, "tokens copies"]:
        """Whether the rows are of an expert; those of tokens that enter once are, whether or not one is chosen."""
        return self.chosen[rows, 0] < self.copies if self.copies > 1 else torch.ones_like(rows, dtype=torch.bool)

    def of_expert(self, number: int) -> tuple[Int[Tensor, " reached"], Float[Tensor, " reached"]]:
        """The rows that reach one expert, ascending, and its weight for each of them.

        >>> routing = Routing(torch.zeros(2, 3), torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2) / 2)
        >>> [one.tolist() for one in routing.of_expert(1)]
        [[0, 1], [0.5, 0.5]]
        """
        is_chosen = self.chosen == number
        rows = is_chosen.any(1).nonzero().squeeze(1)
        return rows, (self.weights * is_chosen).sum(1)[rows]


@dataclass(frozen=True)
class RoutedTokens:
    """The tokens that enter a mixture, without those that a mask hides; `samples` names the sample of each row.

    Of tokens that enter several times only the rows of an expert are there. `lengths` counts the tokens of each sample.
    `cotangents` are the gradients of f at the output of the mixture, at the same rows; None where none were recorded.
    """

    routing: Routing
    samples: Int[Tensor, " rows"]
    lengths: Int[Tensor, " samples"]
    cotangents: Float[Tensor, "rows hidden"] | None = None

    def to(self, device: torch.device) -> "RoutedTokens":
        """The same on `device`."""
        cotangents = None if self.cotangents is None else self.cotangents.to(device)
        routing = Routing(*(one.to(device) for one in self.routing.tensors()), copies=self.routing.copies)
        return RoutedTokens(routing, self.samples.to(device), self.lengths.to(device), cotangents)

    def samples_of(self, expert: int) -> Int[Tensor, " reached"]:
        """The samples with a token that reaches one expert, ascending: those of its trace."""
        return self.samples[self.routing.of_expert(expert)[0]].unique_consecutive()

    def trace_of(self, expert: int) -> tuple[BlockTrace, Float[Tensor, " reached"]] | None:
        """The trace of one expert, and its weight for each of the tokens; None if no token reaches it.

        The samples of the trace are those with such a token. Its cotangents are those of the mixture times the weight,
        or zeros that take no memory. The weights handed back are divided by their root mean square.
        """
        rows, weights = self.routing.of_expert(expert)
        if not len(rows):
            return None
        inputs = self.routing.inputs[rows]
        lengths = self.samples[rows].unique_consecutive(return_counts=True)[1]
        if self.cotangents is None:
            cotangents = inputs.new_zeros(1, 1).expand_as(inputs)
        else:
            cotangents = self.cotangents[rows] * weights[:, None].to(self.cotangents.dtype)
        trace = BlockTrace(inputs, cotangents, lengths)
        scale = weights.double().square().mean().sqrt()
        return trace, weights / scale.to(weights.dtype) if scale > 0 else torch.ones_like(weights)


def called_routing(path: str, experts: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Routing:
    """The routing in the arguments that `experts`, the module at `path`, was called with.

    Raises `InputError` for others than inputs, the numbers of the experts and their weights, or a copy of all inputs
    for every expert.
    """
    given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
    if len(given) == 1 and given[0].ndim == 2 and len(given[0]) % num_experts(experts) == 0:
        return _copied(given[0], num_experts(experts))
    if len(given) == 3 and given[1].ndim == given[2].ndim + 1:
        given[1] = _numbers(given[1])
    if len(given) != 3 or given[1].shape != given[2].shape or given[1].is_floating_point():
        raise InputError(
            f"the experts at {path} must be called with inputs, the numbers of the experts and their weights, or with "
            "the inputs of every expert one after the other, they are called in another way"
        )
    inputs, chosen, weights = given
    return Routing(inputs.reshape(-1, inputs.shape[-1]), chosen, weights)


def _copied(inputs: Float[Tensor, "rows hidden"], copies: int) -> Routing:
    """The routing of tokens that enter once for every expert, multiplied by its weight, which is 0 where not chosen.

    >>> _copied(torch.tensor([[0.0], [3.0], [5.0], [0.0]]), copies=2).chosen.T.tolist()
    [[2, 0, 1, 2]]
    """
    numbers = torch.arange(copies, device=inputs.device).repeat_interleave(len(inputs) // copies)
    chosen = torch.where(inputs.detach().any(1), numbers, copies)
    return Routing(inputs, chosen[:, None], torch.ones_like(inputs[:, :1]), copies)


def _numbers(marks: Int[Tensor, "tokens choices experts"]) -> Int[Tensor, "tokens choices"]:
    """The numbers of the experts that are marked, beyond the last where none is: Switch drops tokens beyond a capacity.

    >>> _numbers(torch.tensor([[[0, 1]], [[0, 0]]])).tolist()
    [[1], [2]]
    """
    return torch.where(marks.any(-1), marks.int().argmax(-1), marks.shape[-1])


@torch.no_grad()
def mixture_output(experts: Sequence[MLP], routing: Routing) -> Float[Tensor, "rows hidden"]:
    """What `experts` give together: of every row the weighted sum over the experts chosen for it, in fp32 or better.

    A choice beyond the last expert counts as none.
    """
    compute = torch.promote_types(routing.inputs.dtype, torch.float32)
    output = torch.zeros_like(routing.inputs, dtype=compute)
    for number, expert in enumerate(experts):
        rows, weights = routing.of_expert(number)
        output.index_add_(0, rows, (forward(expert, routing.inputs[rows]) * weights[:, None]).to(compute))
    return output


def output_instead(experts: Sequence[MLP], routing: Routing, output: Tensor) -> Tensor:
    """What `experts` give in the place of `output`, in its shape and dtype."""
    taken = replace(routing, inputs=routing.inputs.to(experts[0].up))
    return mixture_output(experts, taken).to(output.dtype).reshape(output.shape)


@dataclass(frozen=True)
class SeenMixture:
    """The first run of a module of experts: how it was called, what it gave, and the number of runs until now."""

    routing: Routing
    output: Float[Tensor, "rows hidden"]
    runs: int = 1


@contextmanager
def watch_mixtures(
    base: nn.Module, paths: Iterable[str], keep: Callable[[Tensor], Tensor] | None = None
) -> Iterator[dict[str, SeenMixture]]:
    """Records one run of the modules of experts at `paths` while the context is open; `keep`, if any, keeps the inputs.

    Where gradients are on, one can be taken by the output. Those that did not run on any token are not there at the
    end. Raises `InputError` as `called_routing` does.
    """
    seen: dict[str, SeenMixture] = {}
    with hooks() as handles:
        for path in paths:
            module = base.get_submodule(path)
            handles.append(module.register_forward_hook(_keep_run(seen, path, keep), with_kwargs=True))
        yield seen


def _keep_run(seen: dict[str, SeenMixture], path: str, keep: Callable[[Tensor], Tensor] | None) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        routing = called_routing(path, module, args, kwargs)
        kept = differentiable(output).reshape(routing.inputs.shape)
        if path in seen:  # not kept: the graph of a layer that runs again is to go with it
            seen[path] = replace(seen[path], runs=seen[path].runs + bool(len(routing.inputs)))
        elif len(routing.inputs):
            inputs = routing.inputs if keep is None else keep(routing.inputs)
            seen[path] = SeenMixture(replace(routing, inputs=inputs), kept)
        return kept.reshape(output.shape).clone()  # whoever adds to it in place does not change what is kept

    return hook
