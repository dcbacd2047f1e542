"""The model card of a tuned checkpoint."""

from huggingface_hub import ModelCardData

from mlpfusion.tune.record import TUNE_RECORD_FILE, RunRecord, TuneRecord

_TEXT = """\
---
{data}
---

# {model}, tuned on {task}

`{model}` fine-tuned on {task} ({source}) by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}, {epochs}
epochs, learning rate {rate:g}, batch size {batch_size}; {parameters:,} parameters.

| split | metric | mean over {seeds} | standard deviation |
|---|---|---|---|
{scores}

How it was chosen: {note}. The weights are those of seed {saved_seed}.

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
    """The text of README.md for `record`."""
    recipe, first = record.recipe, record.runs[0]
    data = ModelCardData(
        library_name="transformers", tags=["mlp-fusion", "text-classification"], pipeline_tag="text-classification"
    )
    num_seeds = len(recipe["seeds"])
    return _TEXT.format(
        data=data.to_yaml(),
        model=recipe["model"],
        task=record.task,
        source=record.data,
        version=record.versions["mlpfusion"],
        epochs=recipe["epochs"],
        rate=record.learning_rate,
        batch_size=recipe["batch_size"],
        parameters=record.size.parameters,
        seeds="1 seed" if num_seeds == 1 else f"{num_seeds} seeds",
        scores="\n".join(score_rows(record)),
        note=record.note,
        saved_seed=record.saved_seed,
        metric=first.selection_metric,
        selected_on=first.selected_on or "nothing",
        runs="\n".join(_run_row(run) for run in record.runs),
        record_file=TUNE_RECORD_FILE,
    )


def score_rows(record: TuneRecord) -> list[str]:
    """One line of a Markdown table for every split and metric."""
    return [
        f"| {split} | {name} | {mean:.4f} | {deviation:.4f} |"
        for split, metrics in record.scores.items()
        for name, (mean, deviation) in metrics.items()
    ]


def _run_row(run: RunRecord) -> str:
    score = "-" if run.selection_score is None else f"{run.selection_score:.4f}"
    seconds = "-" if run.seconds_per_step is None else f"{run.seconds_per_step:.3f}"
    return f"| {run.learning_rate:g} | {run.seed} | {score} | {run.steps} | {run.best_step} | {seconds} |"
