"""What is added to a linear map: B A, and few entries S."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

# The standard deviation of A in the published code; LoRA's is that of `nn.Linear`.
_DEVIATION = 0.02


class Update(nn.Module):
    """B A + S on the covered parts of the outputs of one linear map; 0 when it is made.

    `parts` says of equal parts of the outputs, one after the other, which are covered: of query, key and value in one
    map (True, False, True). A and B have one matrix a covered part. S holds values, `omega` their rows and columns.
    """

    omega: Tensor

    def __init__(self, outputs: int, inputs: int, rank: int, parts: Sequence[bool], omega: Int[Tensor, "2 positions"]):
        super().__init__()
        self.parts, self.height = tuple(parts), outputs // len(parts)
        self.A = nn.Parameter(torch.empty(sum(parts), rank, inputs))
        self.B = nn.Parameter(torch.zeros(sum(parts), self.height, rank))
        self.S = nn.Parameter(torch.zeros(omega.shape[1]))
        self.register_buffer("omega", omega)
        nn.init.normal_(self.A, std=_DEVIATION)

    def forward(self, inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """(B A + S) x."""
        rows, columns = self.omega
        pieces = [F.linear(F.linear(inputs, a), b) for a, b in zip(self.A, self.B, strict=True)]
        outputs = self._in_place(pieces, dim=-1)
        # autocast makes the products of matrices smaller, not those of numbers
        sparse = (inputs[..., columns] * self.S).to(outputs.dtype)
        return outputs.index_add(-1, rows, sparse)

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """B A + S, dense."""
        rows, columns = self.omega
        low_rank = self._in_place([b @ a for a, b in zip(self.A, self.B, strict=True)], dim=0)
        return low_rank.index_put((rows, columns), self.S, accumulate=True)

    def _in_place(self, pieces: Sequence[Tensor], dim: int) -> Tensor:
        """The pieces of the covered parts where they belong, zeros elsewhere."""
        waiting = iter(pieces)
        return torch.cat([next(waiting) if covered else torch.zeros_like(pieces[0]) for covered in self.parts], dim)


def part_rows(outputs: int, parts: Sequence[bool]) -> list[slice]:
    """Returns the rows of each covered part.

    >>> part_rows(6, (True, False, True))
    [slice(0, 2, None), slice(4, 6, None)]
    """
    height = outputs // len(parts)
    return [slice(index * height, (index + 1) * height) for index, covered in enumerate(parts) if covered]
