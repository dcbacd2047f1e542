"""Inputs of the kernel of one block: its input tokens and the cotangents at its output."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.errors import InputError


@dataclass(frozen=True)
class BlockTrace:
    """Tokens of all samples, concatenated, without padding (paper, section 1: X and D).

    `inputs` (X) enter the block; `cotangents` (D) are the gradients of the scalar f at its output,
    at the same tokens, raw, before dropout, residual and LayerNorm. `lengths` counts the tokens of
    each sample. X and D may have any floating dtype. Raises `InputError` if shapes do not fit or a
    sample has no token.

    >>> trace = BlockTrace(torch.zeros(5, 8), torch.zeros(5, 8), torch.tensor([3, 2]))
    >>> trace.num_samples, trace.num_tokens, trace.hidden_size
    (2, 5, 8)
    """

    inputs: Float[Tensor, "tokens hidden"]
    cotangents: Float[Tensor, "tokens hidden"]
    lengths: Int[Tensor, " samples"]

    def __post_init__(self) -> None:
        if self.inputs.shape != self.cotangents.shape or self.inputs.ndim != 2:
            shapes = f"{tuple(self.inputs.shape)} and {tuple(self.cotangents.shape)}"
            raise InputError(f"`inputs` and `cotangents` must be of one shape (tokens, hidden), got {shapes}")
        if self.lengths.ndim != 1 or not len(self.lengths) or int(self.lengths.min()) < 1:
            raise InputError(f"`lengths` must be one positive number a sample, got {self.lengths.tolist()}")
        if int(self.lengths.sum()) != len(self.inputs):
            raise InputError(f"`lengths` must sum to the {len(self.inputs)} tokens, got {int(self.lengths.sum())}")

    @property
    def num_samples(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return len(self.inputs)

    @property
    def hidden_size(self) -> int:
        return self.inputs.shape[1]

    def select(self, samples: Int[Tensor, " chosen"]) -> "BlockTrace":
        """Copies the samples with the given indices, in the given order.

        Raises `InputError` for an index out of range.
        """
        tokens = self.token_indices(samples).to(self.inputs.device)
        lengths = self.lengths[samples.to(self.lengths.device)]
        return BlockTrace(self.inputs[tokens], self.cotangents[tokens], lengths)

    def token_indices(self, samples: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen_tokens"]:
        """Returns the token positions of the given samples, sample by sample, on the CPU.

        Raises `InputError` for an index out of range.

        >>> trace = BlockTrace(torch.zeros(5, 1), torch.zeros(5, 1), torch.tensor([3, 2]))
        >>> trace.token_indices(torch.tensor([1, 0])).tolist()
        [3, 4, 0, 1, 2]
        """
        if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < self.num_samples:
            raise InputError(f"`samples` must be between 0 and {self.num_samples - 1}, got {samples.tolist()}")
        lengths, indices = self.lengths.cpu(), samples.cpu()
        starts = (lengths.cumsum(0) - lengths)[indices]
        sizes = lengths[indices]
        offsets = starts - (sizes.cumsum(0) - sizes)
        return torch.arange(int(sizes.sum())) + offsets.repeat_interleave(sizes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "BlockTrace":
        """Moves the trace to `device` and casts X and D to `dtype`. Shares memory if possible."""
        inputs, cotangents = (x.to(device=device, dtype=dtype) for x in (self.inputs, self.cotangents))
        return replace(self, inputs=inputs, cotangents=cotangents, lengths=self.lengths.to(device=device))


def random_trace(
    inputs: Float[Tensor, "tokens hidden"], lengths: Int[Tensor, " samples"], generator: torch.Generator
) -> BlockTrace:
    """Makes a trace with standard normal cotangents: no task, head or backward pass needed.

    They are drawn on the generator's device in fp32 or better, so that one generator gives the same
    numbers for a model on any device. Raises `InputError` as `BlockTrace` does.

    >>> random_trace(torch.zeros(3, 4), torch.tensor([3]), torch.Generator()).cotangents.shape
    torch.Size([3, 4])
    """
    compute = torch.promote_types(inputs.dtype, torch.float32)
    cotangents = torch.randn(inputs.shape, generator=generator, dtype=compute, device=generator.device)
    return BlockTrace(inputs, cotangents.to(inputs.device), lengths)
