"""What the demo prints: tables, and the sentences that say what they show."""

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
    """Authors, each with a sentence."""
    table = _table(("", ""))
    for row in rows:
        table.add_row(row["author"], row["sentence"], style="italic")
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
    records = [found.record for found in results.values()]
    accuracies = [accuracies_after(found) for found in results.values()]
    rows = {
        f"right author, {where}": [f"{100 * share:.1f} +- {100 * error:.1f} %" for share, error in shares]
        for where, shares in ((where, [one[where] for one in accuracies]) for where in accuracies[0])
    }
    rows |= {
        "trained parameters": [f"{record.trained_parameters:,}" for record in records],
        "seconds a step": [f"{record.seconds_per_step or 0:.3f}" for record in records],
        "peak memory, GB": [f"{record.peak_bytes / 1e9:.1f}" for record in records],
    }
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def accuracies_after(found: Trained) -> dict[str, tuple[float, float]]:
    """Where the sentences are from -> share whose author was found after the last step, and its standard error."""
    shares = {"other books": found.record.scores["test"]["accuracy"], "same books": found.accuracy()[-1]}
    counts = found.tested, len(found.labels)
    return {
        where: (share, binomial_error(share, count))
        for (where, share), count in zip(shares.items(), counts, strict=True)
    }


def verdict(results: Mapping[str, Trained]) -> str:
    """What the numbers say, and what they do not."""
    full, cuts = results[FULL], {name: found for name, found in results.items() if name != FULL}
    lines = []
    for where, (share, error) in accuracies_after(full).items():
        found = {name: accuracies_after(one)[where] for name, one in cuts.items()}
        points = [
            f"{name} {100 * (other - share):+.1f} (+- {100 * sqrt(error**2 + other_error**2):.1f})"
            for name, (other, other_error) in found.items()
        ]
        lines.append(f"  {where}: {', '.join(points)}")
    paths = [(name, one.distance(full)) for name, one in cuts.items()]
    distances = ", ".join(f"{name} {path[0]:.2f} -> {path[-1]:.2f}" for name, path in paths)
    guess = 100 / full.logits.shape[-1]
    return "\n".join([
        f"Points above the full model's accuracy (a guess: {guess:.0f} %) and, in brackets, their standard error; less",
        "than two of those may be chance.",
        *lines,
        f"Distance of the logits from the full model's, before -> after: {distances}.",
        f"One seed, {full.record.steps} steps at {CONFIG.learning_rate:g}: a look. README.md has the benchmarks.",
    ])  # fmt: skip


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table
