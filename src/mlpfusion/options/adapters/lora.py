"""What LoRA is told, checked when it is made."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields, check_that
from mlpfusion.options.adapters.pairs import parse_pairs


@dataclass(frozen=True)
class Lora:
    """LoRA by PEFT (Hu et al. 2022): `r` rows a factor, scale `alpha` / `r`.

    `targets` is `all-linear`, or names of linear maps divided by +, or nothing for PEFT's choice for the model type
    (query and value for BERT and its kin). In the end the factors are multiplied into the weights.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_that(self.r >= 1, "lora r", "a whole number of at least 1", self.r)
        check_that(self.alpha > 0, "lora alpha", "above 0", self.alpha)
        check_that(0 <= self.dropout < 1, "lora dropout", "at least 0 and below 1", self.dropout)


def parse_lora(text: str) -> Lora:
    """`r=8,alpha=16` as a config. Raises `InputError` for anything unknown or malformed."""
    return parse_pairs(Lora, "lora", text)
