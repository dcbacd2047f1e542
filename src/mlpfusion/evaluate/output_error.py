"""How far the output of a compressed block is from the original's, on inputs that the original model really sees."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.architectures.sites import find_sites, read_mlp
from mlpfusion.architectures.table import Architecture, find_architecture
from mlpfusion.mlp import MLP, forward
from mlpfusion.traces import Batch, mlp_inputs


@dataclass(frozen=True)
class OutputError:
    """Means over the tokens: `absolute` of |H~ - H|_2, `relative` the same over that of |H|_2.

    Means of norms, not norms over all tokens: real models give a few tokens outputs a hundred times as long as the
    rest, and a Frobenius norm would see nothing but these.
    """

    relative: float
    absolute: float


def output_error(exact: Float[Tensor, "tokens hidden"], approximate: Float[Tensor, "tokens hidden"]) -> OutputError:
    """How far `approximate` is from `exact`, token by token, in float64."""
    exact, approximate = exact.double(), approximate.double()
    absolute = float((approximate - exact).norm(dim=1).mean())
    return OutputError(absolute / float(exact.norm(dim=1).mean()), absolute)


@torch.no_grad()
def relative_output_error(original: MLP, compressed: MLP, inputs: Float[Tensor, "tokens hidden"]) -> float:
    """The relative `OutputError` of the raw MLP output (before residual and LayerNorm) on these inputs."""
    return output_error(forward(original, inputs), forward(compressed, inputs)).relative


def output_errors(
    original: PreTrainedModel,
    compressed: PreTrainedModel,
    batches: Iterable[Batch],
    architecture: Architecture | None = None,
) -> dict[str, float]:
    """Relative output error of every site that differs between the two models, each on the original's inputs."""
    row = architecture or find_architecture(original.config.model_type)
    pairs = [
        (before, after)
        for before, after in zip(find_sites(original, row), find_sites(compressed, row), strict=True)
        if _differ(read_mlp(original, before), read_mlp(compressed, after))
    ]
    inputs = mlp_inputs(original, [before for before, _ in pairs], batches)
    return {
        site.path: relative_output_error(read_mlp(original, site), read_mlp(compressed, after), inputs[site.path])
        for site, after in pairs
    }


def _differ(first: MLP, second: MLP) -> bool:
    """Whether any matrix differs; a narrower one does."""
    pairs = zip(first.matrices().values(), second.matrices().values(), strict=True)
    return not all(torch.equal(one, other) for one, other in pairs)
