"""Linear maps whose zeros stay zero: the mask of a pruned weight is the weight itself."""

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from transformers.pytorch_utils import Conv1D


def keep_zeros(weight: Tensor) -> Tensor:
    """`weight`, but its zeros get the gradient 0, so that no optimizer of the usual kind moves them.

    AdamW's step for a weight of 0 whose gradients were all 0 is 0, weight decay included.
    """
    # torch.jit.trace compares two traces, one of them without gradients: both must be the same graph.
    if not (weight.requires_grad and (torch.is_grad_enabled() or is_tracing())):
        return weight
    return torch.where(weight != 0, weight, 0.0)


class MaskedLinear(nn.Linear):
    """`nn.Linear` whose zeros stay zero in training. Nothing beside the weight is kept, so nothing can be lost.

    A weight that training brings to exactly 0 stays there too. Outputs are those of `nn.Linear`, bit by bit.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, keep_zeros(self.weight), self.bias)


class MaskedConv1D(Conv1D):
    """`MaskedLinear` for the transposed linear map of GPT-2."""

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), keep_zeros(self.weight))
        return flat.view(*x.shape[:-1], self.nf)


MASKED_TYPES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: MaskedLinear, Conv1D: MaskedConv1D}


def with_type(linear: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The same linear map, parameters and all, as an instance of `kind`, a type that is built like its own."""
    assert isinstance(linear, nn.Linear | Conv1D)
    with torch.device("meta"):
        if isinstance(linear, Conv1D):
            new = kind(linear.nf, linear.nx)
        else:
            new = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
    for name, parameter in linear.named_parameters():
        setattr(new, name, parameter)
    return new.train(linear.training)
