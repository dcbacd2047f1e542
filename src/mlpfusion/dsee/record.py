"""What an adapter of DSEE trains, as plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DseeRecord:
    """What trained beside the head: parameters of A and B, values of S, and which entries these are.

    `in_largest`: path of a linear map -> how many of its positions are among as many of the largest |W|.
    """

    rank: int
    scaling: float
    low_rank_parameters: int
    sparse_parameters: int
    in_largest: dict[str, int]
