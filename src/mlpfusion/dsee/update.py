"""What is added to a linear map: B A, and few entries S."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlpfusion.errors import InputError

# The standard deviation of A in the published code; LoRA's is that of `nn.Linear`.
_DEVIATION = 0.02
# Row and column of a position that stands in a file still to be read.
NOWHERE = -1


class Update(nn.Module):
    """B A + S on the covered parts of the outputs of one linear map; 0 when it is made.

    `parts` says of equal parts of the outputs, one after the other, which are covered: of query, key and value in one
    map (True, False, True). A and B have one matrix a covered part. S holds values, `omega` their rows and columns;
    where these are `NOWHERE`, nothing is computed until they are loaded.
    """

    omega: Tensor

    def __init__(self, outputs: int, inputs: int, rank: int, parts: Sequence[bool], omega: Int[Tensor, "2 positions"]):
        super().__init__()
        self.is_placed = False
        self.parts, self.height = tuple(parts), outputs // len(parts)
        self.A = nn.Parameter(torch.empty(sum(parts), rank, inputs))
        self.B = nn.Parameter(torch.zeros(sum(parts), self.height, rank))
        self.S = nn.Parameter(torch.zeros(omega.shape[1]))
        self.register_buffer("omega", omega)
        nn.init.normal_(self.A, std=_DEVIATION)

    def forward(self, inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """(B A + S) x. Raises `InputError` if the positions were never loaded."""
        rows, columns = self._positions()
        pieces = [F.linear(F.linear(inputs, a), b) for a, b in zip(self.A, self.B, strict=True)]
        outputs = self._in_place(pieces, dim=-1)
        # autocast makes the products of matrices smaller, not those of numbers
        sparse = (inputs[..., columns] * self.S).to(outputs.dtype)
        return outputs.index_add(-1, rows, sparse)

    def low_rank(self) -> Float[Tensor, "outputs inputs"]:
        """B A, dense."""
        return self._in_place([b @ a for a, b in zip(self.A, self.B, strict=True)], dim=0)

    def matrix(self) -> Float[Tensor, "outputs inputs"]:
        """B A + S, dense. Raises `InputError` if the positions were never loaded."""
        rows, columns = self._positions()
        return self.low_rank().index_put((rows, columns), self.S, accumulate=True)

    def _positions(self) -> Tensor:
        if self.omega.is_meta:  # shapes alone: nothing is computed
            return self.omega
        if not self.is_placed:
            self.is_placed = bool((self.omega >= 0).all())  # a look at numbers on a GPU, so once and not in every pass
        if not self.is_placed:
            raise InputError(
                "the adapter must be loaded from its file before it is used; for a new one the config must have "
                "`is_drawn=False`, got that of a file"
            )
        return self.omega

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
