"""Numbers as text, Markdown tables and colours of all reports."""

import statistics
from collections.abc import Sequence

from mlpfusion.measure.method_list import FULL as FULL

_SMALL = 0.01  # below it three decimals leave fewer than two digits
# Okabe and Ito 2008, distinct for the colour-blind, without yellow; the last four are matplotlib's, for long lists.
COLORS = ("#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C564B", "#17BECF", "#BCBD22")
_FIXED = {FULL: "black", "fusion": "#0072B2", "ntk-match": "#D55E00"}  # the same in every chart


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Joins cells to a Markdown table; the second line is the rule.

    >>> print(markdown_table([["method", "error"], ["---", "---"], ["fusion", "0.48"]]))
    | method | error |
    | --- | --- |
    | fusion | 0.48 |
    """
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def deviation(numbers: Sequence[float]) -> float:
    """Sample standard deviation (n - 1); 0 for one number.

    >>> deviation([1.0, 2.0, 3.0]), deviation([5.0])
    (1.0, 0.0)
    """
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def mean_with_deviation(numbers: Sequence[float]) -> str:
    """Writes mean +- sample deviation with three decimals, small means with three digits.

    >>> mean_with_deviation([0.25, 0.75]), mean_with_deviation([0.001])
    ('0.500 +- 0.354', '0.001 +- 0')
    """
    mean = statistics.mean(numbers)
    form = ".3f" if abs(mean) >= _SMALL or not mean else ".3g"
    return f"{mean:{form}} +- {deviation(numbers):{form}}"


def score_with_deviation(scores: Sequence[float]) -> str:
    """Writes mean +- sample deviation of scores in percent.

    One score stands alone; no score is `-`.

    >>> score_with_deviation([84.0, 85.0]), score_with_deviation([84.0]), score_with_deviation([])
    ('84.50 +- 0.71', '84.00', '-')
    """
    if not scores:
        return "-"
    spread = f" +- {deviation(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{spread}"


def trailing_means(numbers: Sequence[float], window: int) -> list[float]:
    """Means of the last `window` numbers at every place.

    The first places have fewer numbers.

    >>> trailing_means([1.0, 3.0, 5.0], 2)
    [1.0, 2.0, 4.0]
    """
    return [statistics.mean(numbers[max(0, end - window) : end]) for end in range(1, len(numbers) + 1)]


def method_colors(labels: Sequence[str]) -> dict[str, str]:
    """Picks one colour per label: fixed for `full`, `fusion` and `ntk-match`.

    >>> method_colors(["fusion", "svd", "sketch"])
    {'fusion': '#0072B2', 'svd': '#009E73', 'sketch': '#E69F00'}
    """
    others = [label for label in labels if label not in _FIXED]
    colors = {label: COLORS[index % len(COLORS)] for index, label in enumerate(others)}
    return {label: _FIXED.get(label) or colors[label] for label in labels}
