"""The part of the page on a compression."""

from collections.abc import Callable
from xml.etree.ElementTree import Element

from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.record import Record, SiteRecord
from mlpfusion.report.cells import (
    CLUSTERS,
    ERRORS,
    Metric,
    budget_table,
    budget_words,
    counted,
    data_words,
    error_of,
    layer_table,
    loading_lines,
    percent,
    size_table,
)
from mlpfusion.report.html.blocks import code, figure, figures, paragraph, section, source, table, versions_table
from mlpfusion.report.html.charts import Bar, bar_chart
from mlpfusion.report.html.commands import compress_command
from mlpfusion.report.terminal.results import after_fold_words, left_out_words


def compression_title(record: Record) -> str:
    """Title of the part."""
    name = "A model" if record.model is None else record.model.name.rpartition("/")[2]
    return f"{name}, compressed by {record.recipe['method']}"


def compression_sections(record: Record) -> list[Element]:
    """Content of the part: sizes, layers, loading, and the command."""
    recipe, kind = record.recipe, KIND_NAMES[record.sites[0].kind]
    named = ("A model",) if record.model is None else source(record.model)
    what = f" with {kind.blocks}, made by mlpfusion {record.versions['mlpfusion']}. "
    how = f"Method {recipe['method']}, layers {recipe['layers']}, seed {recipe['seed']}. {data_words(record, str)}"
    notes = [
        None if record.divergence is None else f"Its predictions moved by {record.divergence:.2f} nats a token.",
        left_out_words(record.left_out) if record.left_out else None,
        after_fold_words(record.no_stock_form) if record.model is not None else None,
    ]
    budget = record.budget
    return [
        section(
            "What was cut",
            paragraph(*named, what, how),
            _degenerate(record),
            figure("Left of the model", bar_chart("Left of the model", _sizes(record))),
            table(size_table(record)),
            *(paragraph(note) for note in notes if note is not None),
        ),
        section("Layer by layer", layer_figures(record), table(layer_table(record))),
        *([] if budget is None else [section("Budget", paragraph(budget_words(budget)), table(budget_table(budget)))]),
        *([] if record.load_as is None else [section("How to load it", *_loading(record, record.load_as))]),
        section("How it was made", *_made(record)),
    ]


def layer_figures(record: Record) -> Element:
    """Charts over all layers: size, error, clusters."""
    sites = record.sites
    charts = [_layers("Parameters left", "that are not zero, of each block", sites, _left)]
    name = error_of(sites)
    if name is not None:
        charts.append(figure(_title(ERRORS[name]), main_chart(record), ERRORS[name].meaning))
    if all("largest_cluster" in site.metrics for site in sites):
        largest, single = CLUSTERS["largest_cluster"], CLUSTERS["singletons"]
        charts.append(_layers("Largest cluster", f"{largest.meaning}, of all", sites, _largest))
        charts.append(_layers("Single neurons", f"{single.meaning}, of all", sites, _single))
    return figures(*charts)


def main_chart(record: Record) -> Element:
    """The error of every layer; without one, its size after the cut."""
    name = error_of(record.sites)
    if name is None:
        return bar_chart("Parameters left", [_left(site) for site in record.sites])
    metric = ERRORS[name]
    bars = [Bar(site.path, site.metrics[name], metric.cell(name, site)) for site in record.sites]
    return bar_chart(_title(metric), bars)


def _title(metric: Metric) -> str:
    return metric.title[0].upper() + metric.title[1:]


def _layers(title: str, note: str, sites: tuple[SiteRecord, ...], bar: Callable[[SiteRecord], Bar]) -> Element:
    return figure(title, bar_chart(title, [bar(site) for site in sites]), note)


def _left(site: SiteRecord) -> Bar:
    share = site.nonzero_parameters / site.original_parameters
    return Bar(site.path, share, percent(share))


def _largest(site: SiteRecord) -> Bar:
    size = site.metrics["largest_cluster"]
    words = f"{CLUSTERS['largest_cluster'].cell('largest_cluster', site)} of {site.original_width:,}"
    return Bar(site.path, size / site.original_width, words)


def _single(site: SiteRecord) -> Bar:
    words = f"{CLUSTERS['singletons'].cell('singletons', site)} of {site.width:,}"
    return Bar(site.path, site.metrics["singletons"] / site.width, words)


def _sizes(record: Record) -> list[Bar]:
    before, after = record.original, record.compressed
    shares = {"parameters": after.parameters / before.parameters, "bytes": after.bytes / before.bytes}
    return [Bar(name, share, percent(share)) for name, share in shares.items()]


def _degenerate(record: Record) -> Element | None:
    number = sum(bool(site.metrics.get("degenerate")) for site in record.sites)
    if not number:
        return None
    return paragraph(
        f"The clustering is degenerate at {number} of {len(record.sites)} layers: one cluster is large, most of the "
        "others are single neurons. Leave these layers out, keep more of them, or try ntk-match.",
        note=True,
    )


def _loading(record: Record, load_as: str) -> list[Element]:
    without = KIND_NAMES[record.sites[0].kind].without_package
    return [
        code(loading_lines(load_as)),
        paragraph(f"{without} `mlpfusion.fold(model)` gives the form to deploy and to quantise."),
        paragraph("The licence is that of the source model."),
    ]


def _made(record: Record) -> list[Element]:
    return [
        code(compress_command(record)),
        paragraph(
            f"On {record.device}, {counted(record.threads, 'thread')}, in {record.dtype}. "
            f"SHA-256 of the MLPs of the source: {record.source_sha256}"
        ),
        versions_table(record.versions),
    ]
