"""Options of how a model writes texts."""

from dataclasses import dataclass

from mlpfusion.checks import check_fields, check_range
from mlpfusion.options.fields import option


@dataclass(frozen=True)
class Decoding:
    """How texts are generated: greedily, or by beam search with `num_beams` of more than 1.

    A text ends at an end token, or after `max_new_tokens`; how many were cut there is recorded. A `length_penalty`
    above 0 favours longer texts of a beam search, below 0 shorter ones. `decode_batch` changes the speed, not the texts
    (but for the rounding of sums).
    """

    max_new_tokens: int = option(256, "Of a generated text; 40 in the paper's code.")
    num_beams: int = option(1, "Of a beam search; 1 is greedy.")
    length_penalty: float = option(1.0, "Of a beam search: above 0 for longer texts.")
    decode_batch: int = option(16, "Texts that are generated together.")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("max_new_tokens", "num_beams", "decode_batch"):
            check_range(name, getattr(self, name), 1)
