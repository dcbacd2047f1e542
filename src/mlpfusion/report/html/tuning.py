"""The parts of the page on training: fine-tuning, distillation, and tuned models side by side."""

import statistics
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from mlpfusion.report.cells import (
    Table,
    adapter_words,
    counted,
    run_table,
    score_table,
    tuned_loading_lines,
)
from mlpfusion.report.html.blocks import code, figure, figures, paragraph, section, table, versions_table
from mlpfusion.report.html.charts import Bar, Curve, curve_chart, dot_chart
from mlpfusion.report.html.commands import distill_command, tune_command
from mlpfusion.tune.record import DistillRecord, DistillRun, TuneRecord

_STYLES = ("second", "third", "fourth", "fifth")  # of the runs whose weights were not kept


def tuning_title(record: TuneRecord) -> str:
    """Title of the part."""
    return f"{record.recipe['model']}, tuned on {record.task}"


def tuning_sections(record: TuneRecord) -> list[Element]:
    """Content of the part: scores, curves, loading, and the command."""
    recipe = record.recipe
    words = (
        f" fine-tuned on {record.task} ({record.data}) by mlpfusion {record.versions['mlpfusion']}, "
        f"{counted(recipe['epochs'], 'epoch')}, learning rate {record.learning_rate:g}, batch size "
        f"{recipe['batch_size']}; {record.size.parameters:,} parameters, {record.size.bytes:,} bytes."
    )
    chosen = f"How it was chosen: {record.note}. The weights are those of seed {record.saved_seed}."
    diverged = [f"At learning rate {rate:g} the loss became NaN or Inf." for rate in record.diverged]
    return [
        section(
            "What was done",
            paragraph(str(recipe["model"]), words),
            *([] if record.layerwise is None else [paragraph(_layerwise(record.layerwise))]),
            *([] if record.before is None else [paragraph(adapter_words(record))]),
            paragraph(chosen),
            *(paragraph(one, note=True) for one in diverged),
        ),
        section("Scores", table(score_table(record))),
        section("Training", training_figures(record), table(run_table(record))),
        section("How to load it", code(tuned_loading_lines(record))),
        section("How it was made", *_made(tune_command(record), record)),
    ]


def training_figures(record: TuneRecord) -> Element:
    """Curves of the loss and of the score by epoch, if any, of every run."""
    metric = record.runs[0].selection_metric
    by_epoch = [
        [(epoch.step, epoch.scores[metric]) for epoch in run.epochs if metric in epoch.scores] for run in record.runs
    ]
    scored = [curve for curve in _curves(record, by_epoch) if curve.points]
    chosen = f"{record.metric_name(metric)} on {record.runs[0].selected_on}"
    return figures(
        loss_figure(_losses(record)),
        figure(chosen, curve_chart(chosen, scored, _told(scored)), "after every epoch, by step", scored)
        if scored
        else None,
    )


def loss_figure(curves: Sequence[Curve]) -> Element:
    """Training losses by step."""
    return figure("Training loss", _loss_chart(curves), "by step", curves)


def tuning_chart(record: TuneRecord) -> Element:
    """The training loss of every run."""
    return _loss_chart(_losses(record))


def distillation_chart(record: DistillRecord) -> Element:
    """The training loss."""
    return _loss_chart(_distillation_losses(record))


def _loss_chart(curves: Sequence[Curve]) -> Element:
    return curve_chart("Training loss", curves, _told(curves))


def _losses(record: TuneRecord) -> list[Curve]:
    return _curves(record, [run.training_loss for run in record.runs])


def _distillation_losses(record: DistillRecord) -> list[Curve]:
    return [Curve(f"seed {record.run.seed}", record.run.training_loss, "main")]


def distillation_title(record: DistillRecord) -> str:
    """Title of the part."""
    return f"{record.recipe['compressed']}, taught by {record.recipe['original']}"


def distillation_sections(record: DistillRecord) -> list[Element]:
    """Content of the part: losses, curve, and the command."""
    recipe, run = record.recipe, record.run
    words = (
        f"{recipe['compressed']} trained on what {recipe['original']} says to {run.train_samples:,} unlabelled texts "
        f"({record.data}), by mlpfusion {record.versions['mlpfusion']}: objective {run.objective}, learning rate "
        f"{recipe['learning_rate']:g}, {counted(recipe['epochs'], 'epoch')}, seed {run.seed}; "
        f"{record.size.parameters:,} parameters, {record.size.bytes:,} bytes."
    )
    held_out = (
        f"loss on {counted(run.held_out_samples, 'held-out text')}",
        f"{run.loss_before:.5g}",
        f"{run.loss_after:.5g}",
    )
    return [
        section("What was done", paragraph(words), table(Table("Loss", ("", "before", "after"), (held_out,)))),
        section("Training", loss_figure(_distillation_losses(record))),
        section("How it was made", *_made(distill_command(record), record)),
    ]


def side_by_side(records: Sequence[TuneRecord]) -> list[Element]:
    """Tuned models of one task beside each other: scores, sizes, time of a step."""
    tasks = dict.fromkeys(record.task for record in records)
    groups = [[record for record in records if record.task == task] for task in tasks]
    return [_group(group) for group in groups if len(group) > 1]


def _group(records: Sequence[TuneRecord]) -> Element:
    first = records[0]
    names = {
        (split, metric): f"{first.metric_name(metric)}, {split}" for split, of in first.scores.items() for metric in of
    }
    rows = [_row(record, list(names)) for record in records]
    header = ("model", *names.values(), "parameters", "bytes", "seconds a step")
    caption = f"{first.task} side by side: mean over the seeds, +- standard deviation"
    charts = [
        _scores(
            name,
            [(record, record.scores[split][metric]) for record in records if metric in record.scores.get(split, {})],
        )
        for (split, metric), name in names.items()
    ]
    return section(f"{first.task} side by side", figures(*charts), table(Table(caption, header, tuple(rows))))


def _scores(title: str, scores: Sequence[tuple[TuneRecord, tuple[float, float]]]) -> Element:
    bars = [
        Bar(str(record.recipe["model"]), mean, f"{mean:.4f} +- {spread:.4f}", spread)
        for record, (mean, spread) in scores
    ]
    return figure(title, dot_chart(title, bars), "mean and standard deviation over the seeds")


def _row(record: TuneRecord, names: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    found = [record.scores.get(split, {}).get(metric) for split, metric in names]
    cells = ["-" if score is None else f"{score[0]:.4f} +- {score[1]:.4f}" for score in found]
    seconds = [run.seconds_per_step for run in record.runs if run.seconds_per_step is not None]
    time = f"{statistics.median(seconds):.3f}" if seconds else "-"
    return (str(record.recipe["model"]), *cells, f"{record.size.parameters:,}", f"{record.size.bytes:,}", time)


def _curves(record: TuneRecord, points: Sequence[Sequence[tuple[float, float]]]) -> list[Curve]:
    """One curve a run, the kept one last, above the others."""
    curves = []
    for number, (run, of_run) in enumerate(zip(record.runs, points, strict=True)):
        is_kept = (run.learning_rate, run.seed) == (record.learning_rate, record.saved_seed)
        label = f"rate {run.learning_rate:g}, seed {run.seed}" + (" (kept)" if is_kept else "")
        curves.append(Curve(label, of_run, "main" if is_kept else _STYLES[number % len(_STYLES)]))
    return sorted(curves, key=lambda curve: curve.style == "main")


def _told(curves: Sequence[Curve]) -> list[str]:
    """Where every curve begins and ends."""
    return [
        f"{curve.label} from {curve.points[0][1]:.3g} to {curve.points[-1][1]:.3g}" for curve in curves if curve.points
    ]


def _layerwise(run: DistillRun) -> str:
    return (
        f"Before that, the compressed blocks were tuned layer by layer: Eq. 6 from {run.loss_before:.5g} to "
        f"{run.loss_after:.5g}."
    )


def _made(command: str, record: TuneRecord | DistillRecord) -> list[Element]:
    return [code(command), paragraph(f"On {record.device}."), versions_table(record.versions)]
