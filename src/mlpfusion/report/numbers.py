"""What the reports share: numbers in words, tables, and the label of the model that was not compressed."""

import statistics
from collections.abc import Sequence

# The label of the model in which nothing was compressed.
FULL = "full"
_SMALL = 0.01  # below it three decimals say too little


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The lines, the second of which is the rule, as Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_deviation(numbers: Sequence[float]) -> str:
    """As in `0.480 +- 0.002`, over the seeds; 0 where a method is not random, or there is one seed."""
    mean, deviation = statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    form = ".3f" if abs(mean) >= _SMALL or not mean else ".3g"
    return f"{mean:{form}} +- {deviation:{form}}"
