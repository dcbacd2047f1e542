"""How near an engine's outputs must be to those of torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found.float() - expected).abs().max() / expected.abs().max())


def divergence(found: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence of rows of log-probabilities from the expected ones, in nats."""
    found, expected = (torch.log_softmax(rows.double(), dim=-1) for rows in (found, expected))  # sums to 1e-7 before
    return float((expected.exp() * (expected - found)).sum(-1).mean())


@dataclass(frozen=True)
class Nearness:
    """One way to compare. `words` say what a number of it is, `most` what is allowed, by the dtype of the weights."""

    words: str
    of: Callable[[Tensor, Tensor], float]
    most: dict[str, float]


# fp32 differs by the order of sums; folding a scale into fewer bits rounds once more. llama.cpp (f32, f16, bf16, q8_0)
# reads GELU from a table of fp16.
LARGEST = Nearness(
    "its outputs differ from those of the compressed model by {:.1g} of their size",
    largest_difference,
    {"float32": 1e-4, "float64": 1e-4, "float16": 0.02, "bfloat16": 0.05}
    | {"f32": 5e-3, "f16": 0.02, "bf16": 0.05, "q8_0": 0.1},
)
# The rounding of weights moves the logarithm of improbable tokens by far more than any loss: here they do not count.
NEXT_TOKEN = Nearness(
    "its probabilities of the next token diverge from those of the compressed model by {:.1g} nats",
    divergence,
    {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2},
)
