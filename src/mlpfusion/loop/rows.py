"""Training of the rows of an embedding that the training texts use, in the place of all of them.

A row whose token no text has gets no gradient, but a dense optimiser zeroes, clips and updates it in every step: of
MiniLM half of all parameters, of a multilingual model most. What such a row does get is weight decay, one number for
all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel, TrainerCallback

from mlpfusion.data.encode import Collate, EncodedExamples

_MOST = 0.5  # of the rows: with more of them there is little to save


class RowEmbedding(nn.Module):
    """An embedding of which the rows of `tokens` train, and the others only decay, all by the factor `decay`.

    >>> rows = RowEmbedding(nn.Embedding(5, 2), torch.tensor([1, 3]))
    >>> rows.weight.shape, rows(torch.tensor([[3, 1]])).shape
    (torch.Size([2, 2]), torch.Size([1, 2, 2]))
    """

    decay: Tensor
    tokens: Tensor
    places: Tensor
    others: Tensor

    def __init__(self, whole: nn.Embedding, tokens: Int[Tensor, " rows"]):
        super().__init__()
        table = whole.weight.detach()
        places = torch.full((len(table),), -1, device=table.device)
        places[tokens] = torch.arange(len(tokens), device=table.device)
        self.num_embeddings, self.embedding_dim, self.padding_idx = len(table), table.shape[1], whole.padding_idx
        padding = -1 if whole.padding_idx is None else int(places[whole.padding_idx])
        self._padding = None if padding < 0 else padding
        self.weight = nn.Parameter(table[tokens].clone())
        self.register_buffer("decay", torch.ones((), dtype=torch.float64, device=table.device))
        for name, value in (("tokens", tokens.to(table.device)), ("places", places), ("others", table)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch hidden"]:
        places = self.places[ids]
        if torch.is_grad_enabled():
            return embedding(places, self.weight, self._padding)
        others = embedding(ids, self.others) * self.decay.to(self.others.dtype)
        return torch.where((places < 0).unsqueeze(-1), others, embedding(places.clamp_min(0), self.weight))

    @property
    def num_others(self) -> int:
        """Parameters that do not train."""
        return self.others.numel() - self.weight.numel()

    def decay_with(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets the others decay as a step of AdamW lets parameters that have no gradient, at the rate of that step."""
        for group in optimizer.param_groups:
            if any(parameter is self.weight for parameter in group["params"]):
                self.decay.mul_(1 - group["lr"] * group["weight_decay"])

    @torch.no_grad()
    def table(self) -> Float[Tensor, "vocabulary hidden"]:
        """All rows, as they are by now. Takes the memory of the others, which are gone after it."""
        whole = self.others.mul_(self.decay.to(self.others.dtype))
        whole[self.tokens] = self.weight
        return whole


class RowDecay(TrainerCallback):
    """Calls `decay_with` after every step of the Trainer."""

    def __init__(self, rows: RowEmbedding):
        self.rows = rows

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The schedule has not moved the rate yet."""
        self.rows.decay_with(kwargs["optimizer"])


@contextmanager
def used_rows(model: PreTrainedModel, examples: EncodedExamples, collate: Collate) -> Iterator[RowEmbedding | None]:
    """Inside, the input embedding of `model` trains the rows of the tokens that the examples have, where that pays.

    Yields what stands in its place, or None where it is left alone: it does not train, is tied to another module, of a
    class of its own, or most of its rows are used. At the end, on any way out, the embedding is back, with its trained
    rows. Who trains has to call `decay_with` after every step.
    """
    whole = model.get_input_embeddings()
    if not isinstance(whole, nn.Embedding) or not _is_plain(model, whole):
        yield None
        return
    tokens = _tokens(examples, collate)
    if len(tokens) > _MOST * len(whole.weight):
        yield None
        return
    rows = RowEmbedding(whole, tokens)
    model.set_input_embeddings(rows)
    try:
        yield rows
    finally:
        whole.weight.data = rows.table()
        model.set_input_embeddings(whole)


def _tokens(examples: EncodedExamples, collate: Collate) -> Int[Tensor, " rows"]:
    """The tokens of the examples, ascending, and those that padding adds."""
    ordered = examples.by_length().items
    used = set(collate([ordered[0], ordered[-1]])["input_ids"].flatten().tolist())
    return torch.tensor(sorted(used.union(*(item["input_ids"] for item in examples.items))))


def _is_plain(model: PreTrainedModel, whole: nn.Embedding) -> bool:
    """True for an embedding of torch's own class that trains and has one name in the model."""
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is whole.weight]
    return type(whole) is nn.Embedding and whole.max_norm is None and whole.weight.requires_grad and len(names) == 1
