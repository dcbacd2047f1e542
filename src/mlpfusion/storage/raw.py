"""The numbers of a tensor as they lie in memory."""

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any shape and layout, in its own dtype, row by row.

    >>> bytes(raw_bytes(torch.tensor([[1, 2]], dtype=torch.int16).T))
    b'\\x01\\x00\\x02\\x00'
    """
    # flat first: a matrix of one column may be contiguous with strides that cannot be read as bytes
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8).numpy().data
