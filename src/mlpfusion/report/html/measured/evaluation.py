"""The part of the page on scores of one model, as `evaluate` leaves them."""

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

from mlpfusion.measure.evaluation.harness import HarnessEvaluation
from mlpfusion.measure.evaluation.task import TaskEvaluation
from mlpfusion.measure.evaluation.text import Evaluation
from mlpfusion.options.flags import command_line
from mlpfusion.report.cells import Table
from mlpfusion.report.html.blocks import code, paragraph, section, source, table, versions_table
from mlpfusion.report.html.measured.records import AnyEvaluation
from mlpfusion.report.terminal.results import perplexity_words


def evaluation_title(found: AnyEvaluation) -> str:
    """Title of the part."""
    return f"{found.model.name.rpartition('/')[2]}, evaluated"


def evaluation_sections(found: AnyEvaluation) -> list[Element]:
    """Content of the part: the model, its scores, and the command."""
    size = f", {found.parameters:,} parameters, on {found.device}."
    return [
        section("What was evaluated", paragraph(*source(found.model), size)),
        section("Scores", *_scores(found)),
        section("How it was made", code(_command(found)), versions_table(found.versions)),
    ]


def _scores(found: AnyEvaluation) -> list[Element]:
    if isinstance(found, Evaluation):
        return [paragraph(words) for words in perplexity_words(found)]
    if isinstance(found, HarnessEvaluation):
        return [table(_harness_table(found.found["results"]))]
    rows = [(split, name, f"{score:.4f}") for split, scores in found.scores.items() for name, score in scores.items()]
    cut = [f"{number} of {split}" for split, number in found.cut.items() if number]
    notes = [paragraph(f"Texts that the limit of new tokens ended: {', '.join(cut)}.")] if cut else []
    return [table(Table(f"Scores on {found.task}", ("split", "metric", "score"), tuple(rows))), *notes]


def _harness_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The numbers of lm-eval; a metric is called `NAME,FILTER`, its error `NAME_stderr,FILTER`."""
    rows = []
    for task, numbers in results.items():
        for metric, value in numbers.items():
            name, _, kind = metric.partition(",")
            if type(value) in (int, float) and not name.endswith("_stderr"):
                error = numbers.get(f"{name}_stderr,{kind}")
                spread = f"{error:.4f}" if type(error) in (int, float) else "-"
                rows.append((task, name, kind or "-", f"{value:.4f}", spread))
    return Table("Scores of lm-eval", ("task", "metric", "filter", "value", "standard error"), tuple(rows))


def _command(found: AnyEvaluation) -> str:
    flags: dict[str, Any] = {"data": "FILE"}
    if isinstance(found, TaskEvaluation):
        flags = {"task": found.task}
    elif isinstance(found, HarnessEvaluation):
        flags = {"lm_eval": ",".join(found.tasks)}
    elif found.text.file:
        flags = {"data": found.text.file, "window": found.text.window}
    return command_line(["mlpfusion", "evaluate", found.model.name], flags)
