"""The two numbers of Table 1 exactly as the authors' code prints them, for comparison with it and for nothing else.

Output: of the last batch only (32 texts in the order of the file; 8 of SST-2's 872), padding included, the mean over
the tokens of |delta|_2 of the hidden states after the layer. Kernel: f is the probability of class 0, and the error is
the absolute Frobenius norm over all tensors of the block, b2 included (their batches of one text have no padding).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.kernel import BlockKernels, kernel_error
from mlpfusion.measure.output_error import output_error
from mlpfusion.measure.outputs import recorded_outputs
from mlpfusion.sites.sites import Site
from mlpfusion.sites.traces import run_base

BATCH_SIZE = 32  # of their evaluation
SCALAR = "prob0"


@dataclass(frozen=True)
class AuthorsError:
    """`output` and `kernel` as their code has them, both absolute."""

    output: float
    kernel: float


@dataclass(frozen=True)
class AuthorsReference:
    """What their two numbers compare with: the Adam kernel for f = `SCALAR`, and the padded hidden states."""

    adam: BlockKernels
    hidden: Tensor


def last_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts of their last batch, the only one that counts."""
    return texts[(len(texts) - 1) // BATCH_SIZE * BATCH_SIZE :]


@torch.no_grad()
def padded_outputs(model: PreTrainedModel, sites: Sequence[Site], batch: Batch) -> dict[str, Tensor]:
    """By path, the hidden states after the layers of the sites, padding included."""
    unmasked = {name: tensor for name, tensor in batch.items() if not name.endswith("attention_mask")}
    with recorded_outputs(model, sites, [unmasked]) as recorder:
        run_base(model, batch)
    return {path: outputs.block for path, outputs in recorder.outputs().items()}


def authors_error(before: AuthorsReference, after: AuthorsReference) -> AuthorsError:
    """Their two numbers."""
    output = output_error(before.hidden, after.hidden).absolute
    return AuthorsError(output, kernel_error(before.adam.total, after.adam.total).absolute)
