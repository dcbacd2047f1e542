"""What the kernel of one block is made of: per sample the tokens that enter it and the cotangents at its output."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mlpfusion.errors import InputError


@dataclass(frozen=True)
class BlockTrace:
    """The tokens of all samples one after the other, padding left out (paper, section 1: X and D).

    `inputs` (X) is what enters the block, `cotangents` (D) the gradient of the scalar f with respect to what leaves it
    at the same token, raw, before dropout, residual and LayerNorm; `lengths` says how many tokens each sample has. X
    and D may have any floating dtype. Raises `InputError` if shapes do not fit or a sample has no token.
    """

    inputs: Float[Tensor, "tokens hidden"]
    cotangents: Float[Tensor, "tokens hidden"]
    lengths: Int[Tensor, " samples"]

    def __post_init__(self) -> None:
        if self.inputs.shape != self.cotangents.shape or self.inputs.ndim != 2:
            found = f"{tuple(self.inputs.shape)} and {tuple(self.cotangents.shape)}"
            raise InputError(f"`inputs` and `cotangents` must be of one shape (tokens, hidden), got {found}")
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
        """The trace of these samples, in this order; a copy.

        Raises `InputError` for a number that is none of a sample's.
        """
        tokens = self.token_indices(samples).to(self.inputs.device)
        lengths = self.lengths[samples.to(self.lengths.device)]
        return BlockTrace(self.inputs[tokens], self.cotangents[tokens], lengths)

    def token_indices(self, samples: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen_tokens"]:
        """Where the tokens of these samples stand, sample by sample, on the CPU.

        Raises `InputError` for a number that is none of a sample's.
        """
        if len(samples) and not 0 <= int(samples.min()) <= int(samples.max()) < self.num_samples:
            raise InputError(f"`samples` must be between 0 and {self.num_samples - 1}, got {samples.tolist()}")
        lengths, chosen = self.lengths.cpu(), samples.cpu()
        starts = (lengths.cumsum(0) - lengths)[chosen]
        sizes = lengths[chosen]
        offsets = starts - (sizes.cumsum(0) - sizes)
        return torch.arange(int(sizes.sum())) + offsets.repeat_interleave(sizes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "BlockTrace":
        """The trace on this device and X and D in this dtype; shares memory where nothing changes."""
        inputs, cotangents = (x.to(device=device, dtype=dtype) for x in (self.inputs, self.cotangents))
        return replace(self, inputs=inputs, cotangents=cotangents, lengths=self.lengths.to(device=device))


def random_trace(
    inputs: Float[Tensor, "tokens hidden"], lengths: Int[Tensor, " samples"], generator: torch.Generator
) -> BlockTrace:
    """The trace with standard normal cotangents, drawn per token: no task, no head and no backward pass are needed.

    They are drawn on the generator's device in fp32 or better, so that the same generator gives the same numbers for
    a model on any device. Raises `InputError` as `BlockTrace` does.
    """
    compute = torch.promote_types(inputs.dtype, torch.float32)
    drawn = torch.randn(inputs.shape, generator=generator, dtype=compute, device=generator.device)
    return BlockTrace(inputs, drawn.to(inputs.device), lengths)


def concatenate_traces(traces: list[BlockTrace]) -> BlockTrace:
    """The trace of all samples of `traces`, in their order. Raises `InputError` if there is none."""
    if not traces:
        raise InputError("`traces` must hold at least one trace, got none")
    fields = ("inputs", "cotangents", "lengths")
    return BlockTrace(*(torch.cat([getattr(trace, name) for trace in traces]) for name in fields))
