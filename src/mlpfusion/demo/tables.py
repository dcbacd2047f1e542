"""Tables of the demo, and the sentences to read them by."""

from collections.abc import Mapping, Sequence
from math import sqrt

from rich.table import Table

from mlpfusion.demo.train import CONFIG, Trained, binomial_error
from mlpfusion.measure.approximation import BlockError
from mlpfusion.record import Record
from mlpfusion.report.numbers import FULL

LAYER_LEGEND = """\
Output: mean |H~ - H| over mean |H| of the block alone, on the inputs that the original model gives it. NTK: Frobenius
error of the Adam neural tangent kernel with all blocks in place; how the model learns, not what it computes. Fusion is
the paper's method and needs no data; NTKMatch is ours. It saw 256 of the training sentences without their authors;
--data-free in the place of --calibration makes it do with random tokens.
Mean cosine between the sentence embeddings before and after: {similarities}."""


def example_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Table of authors, each with a sentence."""
    table = _table(("", ""))
    for row in rows:
        table.add_row(row["author"], row["sentence"], style="italic")
    table.columns[1].justify, table.columns[1].no_wrap = "left", False
    return table


def size_table(records: Mapping[str, Record], sizes: Sequence[int], seconds: Sequence[float]) -> Table:
    """Table of sizes and times before and after the cuts.

    `sizes` (bytes on disk) and `seconds` begin with the original.
    """
    first = next(iter(records.values()))
    mlps = [sum(site.parameters for site in record.sites) for record in records.values()]
    totals = [first.original.parameters, *(record.compressed.parameters for record in records.values())]
    rows = [
        ("parameters", totals, ",d"),
        (f"parameters of the {len(first.sites)} MLPs", [sum(s.original_parameters for s in first.sites), *mlps], ",d"),
        ("bytes on disk", sizes, ",d"),
        ("seconds a forward pass", seconds, ".3f"),
    ]
    table = _table(("", "before", *records, "ratio"))
    for name, values, form in rows:
        table.add_row(name, *(format(value, form) for value in values), f"{values[-1] / values[0]:.2f}")
    return table


def layer_table(records: Mapping[str, Record], errors: Mapping[str, Sequence[BlockError]]) -> Table:
    """Table of blocks: widths, and the errors of every method."""
    titles = [f"{error}\n{name}" for error in ("output", "NTK") for name in errors]
    table = _table(("\nblock", "\nwidth", *titles))
    for index, site in enumerate(next(iter(records.values())).sites):
        of_block = [blocks[index] for blocks in errors.values()]
        numbers = [error.output_error for error in of_block] + [error.adam_kernel_error for error in of_block]
        cells = [f"{number:.3f}" for number in numbers]
        table.add_row(site.path, f"{site.original_width:,} -> {site.width:,}", *cells)
    return table


def result_table(results: Mapping[str, Trained]) -> Table:
    """Table of the fine-tuned models: accuracy, parameters, time, memory."""
    table = _table(("after fine-tuning", *results))
    records = [trained.record for trained in results.values()]
    accuracies = [accuracies_after(trained) for trained in results.values()]
    rows = {
        f"right author, {books}": [
            f"{100 * share:.1f} +- {100 * error:.1f} %" for share, error in (shares[books] for shares in accuracies)
        ]
        for books in accuracies[0]
    }
    rows |= {
        "trained parameters": [f"{record.trained_parameters:,}" for record in records],
        "seconds a step": [f"{record.seconds_per_step or 0:.3f}" for record in records],
        "peak memory, GB": [f"{record.peak_bytes / 1e9:.1f}" for record in records],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def accuracies_after(trained: Trained) -> dict[str, tuple[float, float]]:
    """Final accuracy and standard error on `other books` and `same books`."""
    other, same = trained.record.scores["test"]["accuracy"], trained.accuracy()[-1]
    return {
        "other books": (other, binomial_error(other, trained.tested)),
        "same books": (same, binomial_error(same, len(trained.labels))),
    }


def verdict(results: Mapping[str, Trained]) -> str:
    """Sentences on the results: differences, errors, distances, and limits."""
    full, cuts = results[FULL], {name: trained for name, trained in results.items() if name != FULL}
    lines = []
    for books, (share, error) in accuracies_after(full).items():
        of_cuts = {name: accuracies_after(trained)[books] for name, trained in cuts.items()}
        points = [
            f"{name} {100 * (other - share):+.1f} (+- {100 * sqrt(error**2 + other_error**2):.1f})"
            for name, (other, other_error) in of_cuts.items()
        ]
        lines.append(f"  {books}: {', '.join(points)}")
    paths = [(name, trained.distance(full)) for name, trained in cuts.items()]
    distances = ", ".join(f"{name} {path[0]:.2f} -> {path[-1]:.2f}" for name, path in paths)
    guess = 100 / full.logits.shape[-1]
    return "\n".join([
        f"Points above the full model's accuracy (a guess: {guess:.0f} %) and, in brackets, their standard error; less",
        "than two of those may be chance.",
        *lines,
        f"Distance of the logits from the full model's, before -> after: {distances}.",
        f"One seed, {full.record.steps} steps at {CONFIG.learning_rate:g}: a look. docs/results.md has the benchmarks.",
    ])  # fmt: skip


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table
