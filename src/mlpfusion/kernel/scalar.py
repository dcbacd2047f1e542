"""The scalar f(x) whose gradient makes the kernel, and a random head for a model that has none."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.errors import InputError

# (logits, labels or None) -> one value a sample
Scalar = Callable[[Float[Tensor, "samples classes"], Int[Tensor, " samples"] | None], Float[Tensor, " samples"]]


def logit(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """The logit of class 0."""
    return logits[:, 0]


def alternating_logit(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """The logit of class i modulo the number of classes for sample i: as many f as classes, in one kernel."""
    samples = torch.arange(len(logits), device=logits.device)
    return logits[samples, samples % logits.shape[1]]


def prob0(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """The probability of class 0: f of the authors' code for Table 1. Raises `InputError` for a single class."""
    _check_classes(logits)
    return logits.softmax(1)[:, 0]


def loss(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """The cross-entropy against the labels, in nats. Raises `InputError` without labels or for a single class."""
    _check_classes(logits)
    if labels is None:
        raise InputError("`labels` must be in every batch for the scalar `loss`, got none")
    return torch.nn.functional.cross_entropy(logits, labels.reshape(-1), reduction="none")


SCALARS: dict[str, Scalar] = {"logit": logit, "prob0": prob0, "loss": loss}

# Which of a sample's last hidden states a head reads: their mean, or that of the first or the last token.
POOLINGS = ("mean", "first", "last")


@dataclass(frozen=True)
class RandomHead:
    """A linear head without bias on a model's last hidden states, for a model that has no head.

    `pooling` is the `mean` of the hidden states of a sample, or that of its `first` or `last` token. The same head must
    be used on the original and on the compressed model: make it once. Raises `ValueError` for another pooling.
    """

    weight: Float[Tensor, "classes hidden"]
    pooling: str = "mean"

    def __post_init__(self) -> None:
        check_pooling(self.pooling)

    @classmethod
    def draw(
        cls, hidden_size: int, generator: torch.Generator, num_classes: int = 2, pooling: str = "mean"
    ) -> "RandomHead":
        """Weights normal with variance 1 / hidden_size, from `generator` alone, so that a seed gives a head."""
        weight = torch.randn(num_classes, hidden_size, generator=generator, device=generator.device)
        return cls(weight / hidden_size**0.5, pooling)

    def logits(
        self, hidden_states: Float[Tensor, "samples tokens hidden"], mask: Int[Tensor, "samples tokens"] | None
    ) -> Float[Tensor, "samples classes"]:
        """The logits from the tokens that `mask` does not hide, whichever side the padding is on.

        Raises `InputError` if the hidden size of the head is another.
        """
        if hidden_states.shape[-1] != self.weight.shape[1]:
            raise InputError(f"`head` must have hidden size {hidden_states.shape[-1]}, got {self.weight.shape[1]}")
        return self._pooled(hidden_states, mask) @ self.weight.to(hidden_states).T

    def _pooled(self, hidden_states: Tensor, mask: Tensor | None) -> Float[Tensor, "samples hidden"]:
        if self.pooling != "mean":
            seen = torch.ones_like(hidden_states[:, :, 0]).int() if mask is None else mask.int()
            # argmax gives the first of equals: the first token that is seen, or in the reverse order the last
            token = seen.argmax(1) if self.pooling == "first" else seen.shape[1] - 1 - seen.flip(1).argmax(1)
            return hidden_states[torch.arange(len(token), device=token.device), token]
        if mask is None:
            return hidden_states.mean(1)
        kept = mask.to(hidden_states)[:, :, None]
        return (hidden_states * kept).sum(1) / kept.sum(1)


def check_pooling(pooling: str) -> None:
    """Raises `ValueError` for a pooling that no head has."""
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}")


def _check_classes(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise InputError(f"the scalars `prob0` and `loss` must have at least 2 classes, got {logits.shape[1]}")
