"""The two numbers of Table 1 exactly as in the authors' code.

Only for comparison with the paper. Output: mean |delta|_2 over the tokens of the hidden states
after the layer, padding included, in the last batch only (32 texts in the order of the file; 8 of
SST-2's 872). Kernel: f is the probability of class 0, and the error is the absolute Frobenius norm
over all tensors of the block, b2 included (their batches of one text have no padding).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.tokenizer import token_batches
from mlpfusion.kernel import BlockKernels, kernel_error
from mlpfusion.measure.output_error import output_error
from mlpfusion.measure.outputs import recorded_outputs
from mlpfusion.sites.sites import Site
from mlpfusion.sites.traces import run_base

BATCH_SIZE = 32  # of the authors' evaluation
SCALAR = "prob0"


@dataclass(frozen=True)
class AuthorsError:
    """Output and kernel error of the authors' code, both absolute."""

    output: float
    kernel: float


@dataclass(frozen=True)
class AuthorsReference:
    """The original block: Adam kernel for f = `SCALAR`, padded hidden states."""

    adam: BlockKernels
    hidden: Tensor


def last_texts(texts: Sequence[str]) -> Sequence[str]:
    """Texts of the authors' last batch, the only one in their number.

    >>> len(last_texts(["text"] * 872))
    8
    """
    return texts[(len(texts) - 1) // BATCH_SIZE * BATCH_SIZE :]


def last_batch(folder: Path, texts: Sequence[str], config: PreTrainedConfig) -> Batch:
    """Returns their last batch as token ids, by the tokenizer in `folder`."""
    (batch,) = with_decoder_inputs(token_batches(folder, last_texts(texts), config), config)
    return batch


@torch.no_grad()
def padded_outputs(model: PreTrainedModel, sites: Sequence[Site], batch: Batch) -> dict[str, Tensor]:
    """Hidden states after the layers of the sites, padding included, by path."""
    unmasked = {name: tensor for name, tensor in batch.items() if not name.endswith("attention_mask")}
    with recorded_outputs(model, sites, [unmasked]) as recorder:
        run_base(model, batch)
    return {path: outputs.block for path, outputs in recorder.outputs().items()}


def authors_error(before: AuthorsReference, after: AuthorsReference) -> AuthorsError:
    """Computes the authors' two numbers."""
    output = output_error(before.hidden, after.hidden).absolute
    return AuthorsError(output, kernel_error(before.adam.total, after.adam.total).absolute)
