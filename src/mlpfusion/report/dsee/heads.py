"""Heads that were removed, in words: on the terminal, and as the card of the folder."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from mlpfusion.dsee.structured.record import HEADS_RECORD_FILE, Costs, HeadsRecord, LayerHeads
from mlpfusion.report.card import code, front_matter, plain
from mlpfusion.report.terminal.console import PlainConsole, bold

_CARD = """\
---
{data}
---

# {title}, with fewer heads

{source} without {gone} of its {heads} heads of attention, made by [mlpfusion](https://pypi.org/project/mlpfusion/)
{version}. {scored} Nothing was trained after it. {sizes} {costs}

`import mlpfusion`, then load it by any Auto class of transformers. Without the package transformers refuses the
checkpoint with a shape error. {adapter}The licence is that of the source model.

| attention | heads that are left |
|---|---|
{rows}

The full record, with the scores of all heads, is in `{record_file}`.
"""
_SCORED = {
    "update": "They had the smallest update by the adapter that was trained on it.",
    "weights": "They had the smallest weights of query and value.",
}


def print_heads(record: HeadsRecord, out: str) -> None:
    """Prints the heads that are left, layer by layer, and what that saves."""
    console = PlainConsole()
    table = Table("attention", "heads", "left", "by number")
    for layer in record.layers:
        table.add_row(layer.path, str(len(layer.scores)), str(len(layer.kept)), _numbers(layer))
    console.print(table)
    console.print(_size_words(record), highlight=False)
    if record.costs is not None:
        console.print(_cost_words(record.costs), highlight=False)
    beside = f" {out}/adapter is the adapter without them." if record.scored_by == "update" else ""
    loading = f" is complete. `import mlpfusion`, then load it by any Auto class of transformers.{beside}"
    console.print(Text.assemble(bold(out), loading))


def heads_card(record: HeadsRecord, source: Path) -> str:
    """Text of README.md; licence, language and tags from the card in `source`."""
    heads = sum(len(layer.scores) for layer in record.layers)
    return _CARD.format(
        data=front_matter(source, record.model),
        title=plain(record.model.name.rpartition("/")[2]),
        source=code(record.model.name),
        gone=heads - sum(len(layer.kept) for layer in record.layers),
        heads=heads,
        version=record.versions["mlpfusion"],
        scored=_SCORED[record.scored_by],
        sizes=_size_words(record),
        costs="" if record.costs is None else _cost_words(record.costs),
        adapter="`adapter` holds the adapter without them. " if record.scored_by == "update" else "",
        rows="\n".join(f"| {layer.path} | {_numbers(layer)} of {len(layer.scores)} |" for layer in record.layers),
        record_file=HEADS_RECORD_FILE,
    )


def _numbers(layer: LayerHeads) -> str:
    return ", ".join(str(head) for head in layer.kept)


def _size_words(record: HeadsRecord) -> str:
    before, after = record.original, record.sliced
    share = 100 * after.parameters / before.parameters
    return f"{before.parameters:,} -> {after.parameters:,} parameters ({share:.1f} %)."


def _cost_words(costs: Costs) -> str:
    """FLOPs of a pass before and after, in billions."""
    whole = costs.after + (costs.adapter or 0)
    numbers = f"{costs.before / 1e9:.3g} -> {costs.after / 1e9:.3g}"
    saved = f"({100 * (1 - costs.after / costs.before):.1f} % saved"
    beside = "" if costs.adapter is None else f"; {100 * (1 - whole / costs.before):.1f} % with the adapter unmerged"
    return f"{numbers} GFLOPs a text of {costs.tokens} tokens without a head for a task {saved}{beside})."
