"""How many weights under an adapter are set to zero, and which; checked when it is made."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields, check_that
from mlpfusion.errors import InputError
from mlpfusion.options.fields import option

CRITERIA = ("abs", "ab", "wab", "w", "random")


@dataclass(frozen=True)
class Sparsity:
    """The second stage of DSEE: zeros in the weights W, drawn from the updates that were trained beside them.

    Of the maps under the adapter a share `updated_ratio` of the entries is zeroed, those with the smallest scores of
    all these maps together; of the other maps of the layers, ranked together by |W|, a share `other_ratio`.
    """

    criterion: str = option(
        "abs", "Score under the adapter, s = alpha / rank: abs |s (B A + S)|, ab |s B A|, wab |W + s B A|, w, random."
    )
    updated_ratio: float = option(0.2, "Share of zeros in the maps under the adapter.")
    other_ratio: float = option(0.2, "Share of zeros in the other linear maps of the layers, by |W|.")
    seed: int = option(0, "Of --criterion random.")

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(self.criterion in CRITERIA, "criterion", f"one of {', '.join(CRITERIA)}", self.criterion)
        for name in ("updated_ratio", "other_ratio"):
            value = getattr(self, name)
            check_that(0 <= value < 1, name, "at least 0 and below 1", value)
        if self.updated_ratio == self.other_ratio == 0:
            raise InputError("`updated_ratio` or `other_ratio` must be above 0, got 0 for both")
        check_that(
            self.seed == 0 or self.criterion == "random",
            "seed",
            f"left out for criterion={self.criterion}, which draws nothing",
            self.seed,
        )
