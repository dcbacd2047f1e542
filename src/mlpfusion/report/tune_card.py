"""Model cards of fine-tuned and of distilled checkpoints."""

from huggingface_hub import ModelCardData

from mlpfusion.report.card import code, plain
from mlpfusion.tune.record import DISTILL_RECORD_FILE, TUNE_RECORD_FILE, DistillRecord, RunRecord, TuneRecord

_TEXT = """\
---
{data}
---

# {title}, tuned on {task}

{model} fine-tuned on {task} ({source}) by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}, {epochs}
epochs, learning rate {rate:g}, batch size {batch_size}; {parameters:,} parameters.

| split | metric | mean over {seeds} | standard deviation |
|---|---|---|---|
{scores}

{layerwise}How it was chosen: {note}. The weights are those of seed {saved_seed}.

## Runs

| learning rate | seed | {metric} on {selected_on} | steps | best step | seconds a step |
|---|---|---|---|---|---|
{runs}

## How to load it

```python
import mlpfusion  # needed if the MLPs are compressed
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("path/or/id")
```

The full record is in `{record_file}`.
"""


def tune_card(record: TuneRecord) -> str:
    """Text of README.md for a fine-tuned checkpoint."""
    recipe, first = record.recipe, record.runs[0]
    data = ModelCardData(
        library_name="transformers", tags=["mlp-fusion", "text-classification"], pipeline_tag="text-classification"
    )
    num_seeds = len(recipe["seeds"])
    return _TEXT.format(
        data=data.to_yaml(),
        title=plain(recipe["model"]),
        model=code(recipe["model"]),
        task=plain(record.task),
        source=plain(record.data),
        version=record.versions["mlpfusion"],
        epochs=recipe["epochs"],
        rate=record.learning_rate,
        batch_size=recipe["batch_size"],
        parameters=record.size.parameters,
        seeds="1 seed" if num_seeds == 1 else f"{num_seeds} seeds",
        scores="\n".join(score_rows(record)),
        layerwise=_layerwise(record),
        note=record.note,
        saved_seed=record.saved_seed,
        metric=first.selection_metric,
        selected_on=first.selected_on or "nothing",
        runs="\n".join(_run_row(run) for run in record.runs),
        record_file=TUNE_RECORD_FILE,
    )


def _layerwise(record: TuneRecord) -> str:
    if record.layerwise is None:
        return ""
    before, after = record.layerwise.loss_before, record.layerwise.loss_after
    return f"Before that, the compressed blocks were tuned layer by layer: Eq. 6 from {before:.5g} to {after:.5g}.\n\n"


def score_rows(record: TuneRecord) -> list[str]:
    """Lines of a Markdown table, one per split and metric."""
    return [
        f"| {split} | {record.metric_name(name)} | {mean:.4f} | {deviation:.4f} |"
        for split, metrics in record.scores.items()
        for name, (mean, deviation) in metrics.items()
    ]


def _run_row(run: RunRecord) -> str:
    score = "-" if run.selection_score is None else f"{run.selection_score:.4f}"
    seconds = "-" if run.seconds_per_step is None else f"{run.seconds_per_step:.3f}"
    return f"| {run.learning_rate:g} | {run.seed} | {score} | {run.steps} | {run.best_step} | {seconds} |"


_DISTILL_TEXT = """\
---
{data}
---

# {title}

{compressed} trained on what {original} says to {samples:,} unlabelled texts ({source}), by
[mlpfusion](https://pypi.org/project/mlpfusion/) {version}: objective `{objective}`, learning rate {rate:g}, {epochs}
epochs, seed {seed}. The loss on {held_out:,} texts that were held out went from {before:.5g} to {after:.5g}.

The full record is in `{record_file}`.
"""


def distill_card(record: DistillRecord) -> str:
    """Text of README.md for a distilled checkpoint."""
    recipe, run = record.recipe, record.run
    data = ModelCardData(library_name="transformers", tags=["mlp-fusion", "compression", "distillation"])
    return _DISTILL_TEXT.format(
        data=data.to_yaml(),
        title=f"{plain(recipe['compressed'])}, taught by {plain(recipe['original'])}",
        compressed=code(recipe["compressed"]),
        original=code(recipe["original"]),
        samples=run.train_samples,
        source=plain(record.data),
        version=record.versions["mlpfusion"],
        objective=run.objective,
        rate=recipe["learning_rate"],
        epochs=recipe["epochs"],
        seed=run.seed,
        held_out=run.held_out_samples,
        before=run.loss_before,
        after=run.loss_after,
        record_file=DISTILL_RECORD_FILE,
    )
