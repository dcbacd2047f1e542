"""Scalars f(x), the functions of the kernel, and a random head for models without one."""

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
    """Returns the logit of class 0.

    >>> logit(torch.tensor([[1.0, 2.0]])).tolist()
    [1.0]
    """
    return logits[:, 0]


def alternating_logit(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """Returns the logit of class (i modulo number of classes) for sample i.

    One kernel then holds as many f as there are classes. On MiniLM's layer 5, scales matched with
    four logits fit other heads at an error of 0.07, with one logit at 0.10 to 0.19.

    >>> alternating_logit(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [1.0, 4.0]
    """
    samples = torch.arange(len(logits), device=logits.device)
    return logits[samples, samples % logits.shape[1]]


def mean_logit(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """Returns the mean over the classes, in fp32 or better.

    >>> mean_logit(torch.tensor([[1.0, 2.0]])).tolist()
    [1.5]
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(1)


def prob0(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """Returns the probability of class 0, the f of the authors' code for Table 1.

    Raises `InputError` for a single class.

    >>> prob0(torch.tensor([[5.0, 5.0]])).tolist()
    [0.5]
    """
    _check_classes(logits)
    return logits.softmax(1)[:, 0]


def loss(
    logits: Float[Tensor, "samples classes"], labels: Int[Tensor, " samples"] | None = None
) -> Float[Tensor, " samples"]:
    """Returns the cross-entropy against the labels, in nats.

    Raises `InputError` without labels or for a single class.

    >>> round(loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item(), 4)
    0.6931
    """
    _check_classes(logits)
    if labels is None:
        raise InputError("`labels` must be in every batch for the scalar `loss`, got none")
    return torch.nn.functional.cross_entropy(logits, labels.reshape(-1), reduction="none")


SCALARS: dict[str, Scalar] = {"logit": logit, "prob0": prob0, "loss": loss}

# The last hidden states a head reads: the mean of a sample, or the first or last token.
POOLINGS = ("mean", "first", "last")


@dataclass(frozen=True)
class RandomHead:
    """A random linear head without bias on the last hidden states, for models without a head.

    `pooling` is `mean` (of the hidden states of a sample), `first` or `last` (token). Make the head
    once and use it on the original and the compressed model. Raises `ValueError` for another
    pooling.

    >>> RandomHead.draw(8, torch.Generator().manual_seed(0)).weight.shape
    torch.Size([2, 8])
    """

    weight: Float[Tensor, "classes hidden"]
    pooling: str = "mean"

    def __post_init__(self) -> None:
        check_pooling(self.pooling)

    @classmethod
    def draw(
        cls, hidden_size: int, generator: torch.Generator, num_classes: int = 2, pooling: str = "mean"
    ) -> "RandomHead":
        """Draws weights from N(0, 1 / hidden_size), by `generator` alone."""
        weight = torch.randn(num_classes, hidden_size, generator=generator, device=generator.device)
        return cls(weight / hidden_size**0.5, pooling)

    def logits(
        self, hidden_states: Float[Tensor, "samples tokens hidden"], mask: Int[Tensor, "samples tokens"] | None
    ) -> Float[Tensor, "samples classes"]:
        """Computes the logits from the tokens not masked, with padding on either side.

        Raises `InputError` if the hidden size differs from the head's.
        """
        if hidden_states.shape[-1] != self.weight.shape[1]:
            raise InputError(f"`head` must have hidden size {hidden_states.shape[-1]}, got {self.weight.shape[1]}")
        return self._pooled(hidden_states, mask) @ self.weight.to(hidden_states).T

    def _pooled(self, hidden_states: Tensor, mask: Tensor | None) -> Float[Tensor, "samples hidden"]:
        if self.pooling != "mean":
            visible = torch.ones_like(hidden_states[:, :, 0]).int() if mask is None else mask.int()
            # argmax gives the first of equals: the first visible token, or in reverse order the
            # last
            token = visible.argmax(1) if self.pooling == "first" else visible.shape[1] - 1 - visible.flip(1).argmax(1)
            return hidden_states[torch.arange(len(token), device=token.device), token]
        if mask is None:
            return hidden_states.mean(1)
        weights = mask.to(hidden_states)[:, :, None]
        return (hidden_states * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class PeakHead:
    """The model's own logits, each at the token where it is largest.

    It has no weights, and reads logits at every token where `RandomHead` reads hidden states.

    >>> PeakHead().logits(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]), None).tolist()
    [[3.0, 5.0]]
    """

    def logits(
        self, token_logits: Float[Tensor, "samples tokens classes"], mask: Int[Tensor, "samples tokens"] | None
    ) -> Float[Tensor, "samples classes"]:
        """Takes the maximum over the tokens not masked; of equal ones one token gets the gradient."""
        if mask is not None:
            token_logits = token_logits.masked_fill(~mask.bool()[:, :, None], -torch.inf)
        return token_logits.max(1).values


@dataclass(frozen=True)
class NextTokens:
    """The log-likelihood of a sample's own next tokens, the one logit of a causal language model that reads them.

    It has no weights, and reads logits at every token as `PeakHead` does.

    >>> flat = torch.zeros(1, 3, 4)  # four tokens are equally likely
    >>> round(NextTokens().logits(flat, torch.tensor([[0, 1, 2]]), None).item(), 4)  # 2 log(1/4)
    -2.7726
    """

    def logits(
        self,
        token_logits: Float[Tensor, "samples tokens classes"],
        input_ids: Int[Tensor, "samples tokens"],
        mask: Int[Tensor, "samples tokens"] | None,
    ) -> Float[Tensor, "samples 1"]:
        """Sums over the tokens that are not masked and follow one that is not, in nats, in fp32 or better."""
        scores = token_logits[:, :-1].to(torch.promote_types(token_logits.dtype, torch.float32)).transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(scores, input_ids[:, 1:], reduction="none")
        if mask is not None:
            losses = losses * (mask[:, 1:] * mask[:, :-1]).to(losses)
        return -losses.sum(1, keepdim=True)


def check_pooling(pooling: str) -> None:
    """Raises `ValueError` for an unknown pooling.

    >>> check_pooling("first")
    """
    if pooling not in POOLINGS:
        raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}, got {pooling!r}")


def _check_classes(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise InputError(f"the scalars `prob0` and `loss` must have at least 2 classes, got {logits.shape[1]}")
