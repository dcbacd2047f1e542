"""What a target of `mlpfusion export` is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.export.nearness import LARGEST, Nearness
from mlpfusion.extras import Extra
from mlpfusion.kinds.stock.form import StockForm

GGUF_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class ExportWork:
    """What an export starts from: the compressed checkpoint, inputs to trace it with and others to compare outputs on.

    `dtype` is that of the weights in a GGUF file.
    """

    source: Checkpoint
    traced: dict[str, Tensor]
    compared: dict[str, Tensor]
    dtype: str


@torch.no_grad()
def first_output(model: PreTrainedModel, work: ExportWork) -> Tensor:
    """The first output of a model: logits, or the last hidden states."""
    return model(**work.compared)[0]


def holds_any(config: PreTrainedConfig, form: StockForm) -> str | None:
    """None: graphs hold what there is."""
    return None


def by_largest_difference(config: PreTrainedConfig) -> Nearness:
    """The usual way to compare: the largest difference over the largest number."""
    return LARGEST


@dataclass(frozen=True)
class Target:
    """One row of `TARGETS`: a form that other engines load. `engine` names what is run to compare."""

    name: str
    engine: str
    # Writes the folded model into a folder.
    write: Callable[[PreTrainedModel, ExportWork, Path], None]
    # What is compared: as torch computes it, and as what was written gives it in a process without this package.
    expected: Callable[[PreTrainedModel, ExportWork], Tensor]
    found: Callable[[ExportWork, Path], Tensor]
    # Why it cannot hold a model of this stock form, None if it can.
    refusal: Callable[[PreTrainedConfig, StockForm], str | None] = holds_any
    # How the two are compared.
    nearness: Callable[[PreTrainedConfig], Nearness] = by_largest_difference
    # Whether weights are written in the dtype of the checkpoint; else the folded model comes in fp32.
    keeps_dtype: bool = False
    needs: Extra | None = None
