"""What the demo prints: tables, and the sentences that say what they show."""

from collections.abc import Mapping, Sequence
from math import sqrt

from rich.table import Table

from mlpfusion.demo.picture import FULL
from mlpfusion.demo.train import CONFIG, Trained, binomial_error
from mlpfusion.evaluate.approximation import BlockError
from mlpfusion.record import Record

LAYER_LEGEND = """\
Output: mean |H~ - H| over mean |H| of the block alone, on the inputs that the original model gives it. NTK: Frobenius
error of the Adam neural tangent kernel with all blocks in place; how the model learns, not what it computes. Fusion is
the paper's method and needs no data; NTKMatch is ours. It saw 256 of the training sentences without their authors;
--data-free in the place of --calibration makes it do with random tokens.
Mean cosine between the sentence embeddings before and after: {similarities}."""


def example_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Authors, each with a sentence."""
    table = _table(("", ""))
    for row in rows:
        table.add_row(row["author"], f'"{row["sentence"]}"', style="italic")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    return table


def size_table(records: Mapping[str, Record], sizes: Sequence[int], seconds: Sequence[float]) -> Table:
    """Sizes and times of the original and the cuts; `sizes` (bytes on disk) and `seconds` begin with the original."""
    first = next(iter(records.values()))
    mlps = [sum(site.parameters for site in record.sites) for record in records.values()]
    rows = [
        ("parameters", [first.original.parameters, *(one.compressed.parameters for one in records.values())], ",d"),
        (f"parameters of the {len(first.sites)} MLPs", [sum(s.original_parameters for s in first.sites), *mlps], ",d"),
        ("bytes on disk", sizes, ",d"),
        ("seconds a forward pass", seconds, ".3f"),
    ]
    table = _table(("", "before", *records, "ratio"))
    for name, values, form in rows:
        table.add_row(name, *(format(value, form) for value in values), f"{values[-1] / values[0]:.2f}")
    return table


def layer_table(records: Mapping[str, Record], errors: Mapping[str, Sequence[BlockError]]) -> Table:
    """Blocks, their widths, and the errors of every method."""
    titles = [f"{error}\n{name}" for error in ("output", "NTK") for name in errors]
    table = _table(("\nblock", "\nwidth", *titles))
    for index, site in enumerate(next(iter(records.values())).sites):
        found = [one[index] for one in errors.values()]
        numbers = [error.output_error for error in found] + [error.adam_kernel_error for error in found]
        table.add_row(site.path, f"{site.original_width:,} -> {site.width:,}", *(f"{one:.3f}" for one in numbers))
    return table


def result_table(results: Mapping[str, Trained]) -> Table:
    """What came of the fine-tuning; accuracies with their binomial standard error."""
    table = _table(("after fine-tuning", *results))
    first, records = results[FULL], [found.record for found in results.values()]
    rows = {
        f"right author, {first.tested} sentences of other books": map(_percent, results.values()),
        f"right author, {len(first.labels)} held out of the same books": [
            f"{100 * share:.1f} +- {100 * binomial_error(share, len(first.labels)):.1f} %"
            for share in (found.accuracy()[-1] for found in results.values())
        ],
        "trained parameters": [f"{record.trained_parameters:,}" for record in records],
        "seconds a step": [f"{record.seconds_per_step or 0:.3f}" for record in records],
        "peak memory, GB": [f"{record.peak_bytes / 1e9:.1f}" for record in records],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def tested_accuracy(found: Trained) -> tuple[float, float]:
    """Share of the test sentences whose author was found, and its binomial standard error."""
    share = found.record.scores["test"]["accuracy"]
    return share, binomial_error(share, found.tested)


def verdict(results: Mapping[str, Trained]) -> str:
    """What the numbers say, and what they do not."""
    full, _ = tested_accuracy(results[FULL])
    cuts = {name: found for name, found in results.items() if name != FULL}
    kept = ", ".join(f"{name} keeps {100 * tested_accuracy(found)[0] / full:.1f} %" for name, found in cuts.items())
    (best, (share, error)), (other, (less, other_error)) = sorted(
        ((name, tested_accuracy(found)) for name, found in cuts.items()), key=lambda cut: -cut[1][0]
    )
    points, chance = 100 * (share - less), 200 * sqrt(error**2 + other_error**2)
    weight = "more than" if points > chance else "no more than"
    apart = {name: found.distance(results[FULL]) for name, found in cuts.items()}
    paths = ", ".join(f"{name} {one[0]:.2f} -> {one[-1]:.2f}" for name, one in apart.items())
    return (
        f"Of the full model's accuracy on other books (a guess: {100 / results[FULL].logits.shape[-1]:.0f} %) {kept}.\n"
        f"{best} is {points:.1f} points above {other}, {weight} chance explains (two standard errors: {chance:.1f}).\n"
        f"Distance of the logits from the full model's, before -> after fine-tuning: {paths}.\n"
        f"One seed, {results[FULL].record.steps} steps at {CONFIG.learning_rate:g}: a look, no benchmark. "
        "The README has those."
    )


def _percent(found: Trained) -> str:
    share, error = tested_accuracy(found)
    return f"{100 * share:.1f} +- {100 * error:.1f} %"


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table
