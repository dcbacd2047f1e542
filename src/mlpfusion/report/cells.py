"""Tables and sentences on runs, the same on a card and on a page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlpfusion.data.unlabelled.data_free import is_data_free
from mlpfusion.record import Record, SiteRecord
from mlpfusion.report.numbers import markdown_table
from mlpfusion.tune.record import RunRecord, TuneRecord


@dataclass(frozen=True)
class Table:
    """A table of texts under a caption."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table in Markdown, without its caption."""
        return markdown_table([self.header, ["---"] * len(self.header), *self.rows])


@dataclass(frozen=True)
class Metric:
    """A number of a block in a record: its title, its meaning, how to write it."""

    title: str
    meaning: str
    write: Callable[[float], str]

    def cell(self, name: str, site: SiteRecord) -> str:
        """The number of `site` as text, `-` without one."""
        return self.write(site.metrics[name]) if name in site.metrics else "-"


def percent(share: float) -> str:
    """Writes a share with one decimal.

    >>> percent(0.25)
    '25.0 %'
    """
    return f"{100 * share:.1f} %"


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(3000, "seed")
    ('1 seed', '3,000 seeds')
    """
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _count(count: float) -> str:
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.1f}"  # of experts it is a mean


def _digits(number: float) -> str:
    return f"{number:.3g}"


_HELD_OUT = "of the MLP, relative, on tokens of the calibration that were held out"
# The best known of the errors that a method leaves comes first.
ERRORS = {
    "output_error_refined": Metric("output error", _HELD_OUT, _digits),
    "output_error_refit": Metric("output error", _HELD_OUT, _digits),
    "output_error_chosen": Metric("output error", _HELD_OUT, _digits),
    "squared_error": Metric("squared output error", "of the MLP, relative, on the calibration", _digits),
    "gradient_error": Metric("squared gradient error", "of the MLP, relative, on the calibration", _digits),
    "inertia_ratio": Metric(
        "inertia left", "squared distance of the neurons from their cluster, over that from their mean", percent
    ),
    "mmd": Metric("squared MMD", "between the neurons before and after", _digits),
}
CLUSTERS = {
    "largest_cluster": Metric("largest cluster", "neurons that became one", _count),
    "singletons": Metric("single neurons", "clusters of one neuron", _count),
}


def error_of(sites: Sequence[SiteRecord]) -> str | None:
    """Name of an error known at all sites; None without one."""
    return next((name for name in ERRORS if all(name in site.metrics for site in sites)), None)


def size_table(record: Record) -> Table:
    """Parameters and bytes of the model before and after."""
    before, after = record.original, record.compressed
    pairs = {"parameters": (before.parameters, after.parameters), "bytes": (before.bytes, after.bytes)}
    rows = [(name, f"{old:,}", f"{new:,} ({percent(new / old)})") for name, (old, new) in pairs.items()]
    return Table("Size of the model", ("", "before", "after"), tuple(rows))


def layer_table(record: Record) -> Table:
    """Size before and after, error and clusters of every block."""
    sites, error = record.sites, error_of(record.sites)
    shown = {} if error is None else {error: ERRORS[error]}
    shown |= {name: metric for name, metric in CLUSTERS.items() if any(name in site.metrics for site in sites)}
    header = ("layer", "width before", "after", "parameters after", *(metric.title for metric in shown.values()))
    rows = [
        (
            site.path,
            f"{site.original_width:,}",
            site.size(),
            f"{site.parameters:,}",
            *(metric.cell(name, site) for name, metric in shown.items()),
        )
        for site in sites
    ]
    return Table("Every layer that was cut", header, tuple(rows))


def budget_words(budget: dict[str, Any]) -> str:
    """One sentence on a budget and its error."""
    kept = f"{budget['kept']:,} of {budget['total']:,} {budget['unit']}"
    return f"The widths spread a budget of {budget['budget']} ({kept}). Error: {budget['measure']}."


def budget_table(budget: dict[str, Any]) -> Table:
    """The share of every layer of a budget, and its error."""
    rows = [(s["path"], f"{s['width']:,}", percent(s["share"]), f"{s['error']:.3g}") for s in budget["sites"]]
    return Table("Shares of the budget", ("layer", "width", "share", "error"), tuple(rows))


def data_words(record: Record, quoted: Callable[[str], str]) -> str:
    """One sentence on the data of a method; `quoted` writes the name of a file."""
    task = record.recipe.get("task")
    if task is not None:
        return (
            f"What to keep was learned on {task['samples']:,} labelled training examples of {task['name']}. "
            "It was not fine-tuned after it."
        )
    calibration = record.recipe.get("calibration")
    if calibration is None:
        return "No data was used. Nothing was trained after it."
    if is_data_free(calibration):
        return f"No data was used: calibrated on {calibration['samples']:,} sequences of {calibration['file']}."
    source = f" of {quoted(calibration['file'])}" if "file" in calibration else ""
    return (
        f"Calibrated on {calibration['samples']:,} unlabelled samples{source}, {calibration['tokens']:,} tokens. "
        "Nothing was trained on a task after it."
    )


def loading_lines(load_as: str) -> str:
    """Lines of Python that load a checkpoint by the class `load_as`."""
    is_sentence_model = load_as == "SentenceTransformer"
    library = "sentence_transformers" if is_sentence_model else "transformers"
    call = load_as if is_sentence_model else f"{load_as}.from_pretrained"
    return (
        "import mlpfusion  # lets transformers build the compressed blocks\n"
        f'from {library} import {load_as}\n\nmodel = {call}("path/or/id")'
    )


def tuned_loading_lines(record: TuneRecord) -> str:
    """Lines of Python that load a tuned checkpoint, with the adapter that stands beside it, if any."""
    if _is_beside(record):
        return 'import mlpfusion\n\nmodel = mlpfusion.load_adapted("path")'
    return loading_lines(record.names.auto_class)


def adapter_words(record: TuneRecord) -> str:
    """What became of an adapter that trained again."""
    assert record.before is not None
    metric = record.runs[0].selection_metric
    changes = ", ".join(
        f"{metric} on {split} from {scores[metric][0]:.4f} to {record.scores[split][metric][0]:.4f}"
        for split, scores in record.before.items()
        if metric in scores
    )
    place = "It is in `adapter`, not merged." if _is_beside(record) else "It is merged into the weights."
    return f"An adapter was trained again: {changes}. {place}"


def _is_beside(record: TuneRecord) -> bool:
    """Whether an adapter stands beside the weights, not merged."""
    return record.before is not None and not record.recipe["merge"]


def score_table(record: TuneRecord) -> Table:
    """Mean and deviation of every metric of every split over the seeds."""
    rows = [
        (split, record.metric_name(name), f"{mean:.4f}", f"{deviation:.4f}")
        for split, metrics in record.scores.items()
        for name, (mean, deviation) in metrics.items()
    ]
    header = (
        "split",
        "metric",
        f"mean over {counted(len({run.seed for run in record.runs}), 'seed')}",
        "standard deviation",
    )
    return Table("Scores at the chosen learning rate", header, tuple(rows))


def run_table(record: TuneRecord) -> Table:
    """One row per run: rate, seed, score, steps, time."""
    first = record.runs[0]
    selection = f"{first.selection_metric} on {first.selected_on or 'nothing'}"
    header = ("learning rate", "seed", selection, "steps", "best step", "seconds a step")
    return Table("Every run", header, tuple(_run_row(run) for run in record.runs))


def _run_row(run: RunRecord) -> tuple[str, ...]:
    score = "-" if run.selection_score is None else f"{run.selection_score:.4f}"
    seconds = "-" if run.seconds_per_step is None else f"{run.seconds_per_step:.3f}"
    return (f"{run.learning_rate:g}", str(run.seed), score, str(run.steps), str(run.best_step), seconds)
