"""Numbers of fp32 kept as whole numbers, which no change of a model's dtype touches."""

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

# The value of each exponent field of fp32; that of infinities and NaN is never read.
_POWERS = (2.0**-126, *(2.0 ** (field - 127) for field in range(1, 255)), 1.0)

_LOWEST = -(2**31)  # an int32 whose sign bit alone is set


def as_bits(numbers: Tensor) -> Int32[Tensor, "*shape"]:
    """The bits of the numbers, rounded to fp32, as whole numbers.

    >>> as_bits(torch.tensor([1.0, -2.0])).tolist()
    [1065353216, -1073741824]
    """
    return numbers.to(torch.float32).contiguous().view(torch.int32)


def from_bits(bits: Int32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """The finite numbers of such bits, the same ones to the last bit wherever they are computed.

    >>> from_bits(torch.tensor([1065353216, -1073741824], dtype=torch.int32)).tolist()
    [1.0, -2.0]
    """
    if torch.compiler.is_exporting():
        return computed_from_bits(bits)  # the formats of graphs (ONNX, OpenVINO, ExecuTorch) cannot look at bits
    return bits.view(torch.float32)


def computed_from_bits(bits: Int32[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """The same by arithmetic that every engine has and that rounds nothing: sign x (1 + fraction) x power of two."""
    positive = torch.where(bits < 0, bits - _LOWEST, bits)
    field = torch.div(positive, 2**23, rounding_mode="floor")
    fraction = (positive - field * 2**23).to(torch.float32) * 2.0**-23
    power = torch.tensor(_POWERS, dtype=torch.float32, device=bits.device)[field]
    size = torch.where(field > 0, 1.0 + fraction, fraction) * power
    return torch.where(bits < 0, -size, size)
