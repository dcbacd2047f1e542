"""The model cards of compressed, tuned and distilled checkpoints."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mlpfusion.data.labelled.glue import GLUE
from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.record import RECORD_FILE, Origin, Record
from mlpfusion.report.cells import (
    adapter_words,
    budget_table,
    budget_words,
    data_words,
    layer_table,
    loading_lines,
    run_table,
    score_table,
    size_table,
    tuned_loading_lines,
)
from mlpfusion.storage.yaml import read_front_matter
from mlpfusion.tune.record import DISTILL_RECORD_FILE, TUNE_RECORD_FILE, DistillRecord, RunRecord, TuneRecord

_TEXT = """\
---
{data}
---

# {title}

{source} with {what}, made by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}.
Method `{method}`, layers `{layers}`, seed {seed}. {data_used}

{sizes}

## How to load it

```python
{snippet}
```

{without} `mlpfusion.fold(model)` gives the form to deploy and to quantise. The licence is that of the source model.

## Layers

![The layers, one bar each: the numbers are in the table]({chart})

{rows}
{budget}
The full record, with versions and the hash of the source weights, is in `{record_file}`.
"""


# Entries of the source's card kept for the compressed model; no scores, they were measured on the source.
_LICENCE = ("license", "license_name", "license_link", "language")
_KEPT = (*_LICENCE, "datasets", "pipeline_tag", "library_name", "tags")
# Our name of a metric -> that on the Hub, where the two differ.
_HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
# The chart beside a card.
CHART_FILE = "mlp_fusion_chart.svg"


def model_card(record: Record, source: Path) -> str:
    """Text of README.md; licence, language and tags from the card in `source`."""
    came_from = record.model
    assert came_from is not None
    assert record.load_as is not None
    kind = KIND_NAMES[record.sites[0].kind]
    return _TEXT.format(
        data=front_matter(source, came_from),
        title=f"{plain(came_from.name.rpartition('/')[2])}, compressed",
        what=kind.blocks,
        without=kind.without_package,
        source=_link(came_from),
        snippet=loading_lines(record.load_as),
        version=record.versions["mlpfusion"],
        method=record.recipe["method"],
        layers=record.recipe["layers"],
        seed=record.recipe["seed"],
        data_used=data_words(record, code),
        sizes=size_table(record).markdown(),
        chart=CHART_FILE,
        rows=layer_table(record).markdown(),
        budget=_budget(record.budget),
        record_file=RECORD_FILE,
    )


def plain(text: str) -> str:
    """Escapes a name from outside: no markup, no HTML, one line.

    >>> plain("<b>model</b>")
    '&#60;b&#62;model&#60;/b&#62;'
    """
    return "".join(f"&#{ord(letter)};" if letter in "&<>`|*[]\\" else letter for letter in _printable(text))


def code(text: str) -> str:
    """Puts a name from outside between backticks, in one line.

    >>> code("my`model")
    "`my'model`"
    """
    return "`" + _printable(text).replace("`", "'") + "`"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def front_matter(source: Path, came_from: Origin, *more_tags: str) -> str:
    """The metadata block of a card: licence, language and tags are those of the card in `source`."""
    entries = _entries(source, _KEPT)
    is_sentence_model = (source / "modules.json").is_file()
    entries.setdefault("library_name", "sentence-transformers" if is_sentence_model else "transformers")
    tags = entries.pop("tags", [])
    tags = [*([tags] if isinstance(tags, str) else tags), "mlp-fusion", "compression", *more_tags]
    return ModelCardData(base_model=_base(source, came_from), tags=list(dict.fromkeys(tags)), **entries).to_yaml()


def tuned_front_matter(record: TuneRecord, source: Path, came_from: Origin) -> str:
    """The metadata block of a tuned model, with the scores of the weights that were kept.

    Licence and language are those of the card in `source`; its other tags are of another use.
    """
    names, kept = record.names, next(run for run in record.runs if _is_kept(run, record))
    scores = [(split, name, value) for split, found in kept.scores.items() for name, value in found.items()]
    results = [
        EvalResult(
            task_type=names.pipeline_tag,
            dataset_type="glue" if record.task in GLUE else record.task,
            dataset_name=record.task,
            dataset_split=split,
            metric_type=_HUB_METRICS.get(name, name),
            metric_value=value,
        )
        for split, name, value in scores
    ]
    return ModelCardData(
        base_model=_base(source, came_from),
        library_name="transformers",
        pipeline_tag=names.pipeline_tag,
        tags=["mlp-fusion", names.pipeline_tag],
        metrics=list(dict.fromkeys(result.metric_type for result in results)),
        model_name=_printable(
            f"{record.recipe['model']}, tuned on {record.task}"
        ),  # a name of several lines could end the block
        eval_results=results,
        **_entries(source, _LICENCE),
    ).to_yaml()


def _is_kept(run: RunRecord, record: TuneRecord) -> bool:
    return (run.learning_rate, run.seed) == (record.learning_rate, record.saved_seed)


def _entries(source: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Entries of the card in `source` that are text, or lists of it."""
    data = read_front_matter(source / "README.md")
    return {name: data[name] for name in names if _is_text(data.get(name))}


def _base(source: Path, came_from: Origin) -> str | list[str] | None:
    """The model on the Hub that a checkpoint is made from, as far as it is known."""
    return came_from.name if came_from.is_hub_id else _entries(source, ("base_model",)).get("base_model")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _link(came_from: Origin) -> str:
    """Name of the source; a link with its commit if on the Hub."""
    if not came_from.is_hub_id:
        return code(came_from.name)
    commit = f" (commit `{came_from.commit}`)" if came_from.commit else ""
    return f"[{came_from.name}](https://huggingface.co/{came_from.name}){commit}"


def _budget(budget: dict[str, Any] | None) -> str:
    """Table of the layers' shares of a budget; empty without a budget."""
    if budget is None:
        return ""
    return f"\n{budget_words(budget)}\n\n{budget_table(budget).markdown()}\n"


_TUNE_TEXT = """\
---
{data}
---

# {title}, tuned on {task}

{model} fine-tuned on {task} ({source}) by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}, {epochs}
epochs, learning rate {rate:g}, batch size {batch_size}; {parameters:,} parameters.

{scores}

{layerwise}{adapter}How it was chosen: {note}. The weights are those of seed {saved_seed}.

## Runs

![Training loss by step, one line a run, the thick one that of the weights here]({chart})

{runs}

## How to load it

```python
{snippet}
```

The full record is in `{record_file}`.
"""


def tune_card(record: TuneRecord, source: Path, came_from: Origin) -> str:
    """Text of README.md for a fine-tuned checkpoint; licence and base model from the card in `source`."""
    recipe = record.recipe
    return _TUNE_TEXT.format(
        data=tuned_front_matter(record, source, came_from),
        title=plain(recipe["model"]),
        model=code(recipe["model"]),
        task=plain(record.task),
        source=plain(record.data),
        version=record.versions["mlpfusion"],
        epochs=recipe["epochs"],
        rate=record.learning_rate,
        batch_size=recipe["batch_size"],
        parameters=record.size.parameters,
        scores=score_table(record).markdown(),
        layerwise=_layerwise(record),
        note=record.note,
        saved_seed=record.saved_seed,
        chart=CHART_FILE,
        runs=run_table(record).markdown(),
        adapter="" if record.before is None else f"{adapter_words(record)}\n\n",
        snippet=tuned_loading_lines(record),
        record_file=TUNE_RECORD_FILE,
    )


def _layerwise(record: TuneRecord) -> str:
    if record.layerwise is None:
        return ""
    before, after = record.layerwise.loss_before, record.layerwise.loss_after
    return f"Before that, the compressed blocks were tuned layer by layer: Eq. 6 from {before:.5g} to {after:.5g}.\n\n"


_DISTILL_TEXT = """\
---
{data}
---

# {title}

{compressed} trained on what {original} says to {samples:,} unlabelled texts ({source}), by
[mlpfusion](https://pypi.org/project/mlpfusion/) {version}: objective `{objective}`, learning rate {rate:g}, {epochs}
epochs, seed {seed}. The loss on {held_out:,} texts that were held out went from {before:.5g} to {after:.5g}.

![Training loss by step]({chart})

The full record is in `{record_file}`.
"""


def distill_card(record: DistillRecord, source: Path, came_from: Origin) -> str:
    """Text of README.md for a distilled checkpoint; licence, language and tags from the card in `source`."""
    recipe, run = record.recipe, record.run
    return _DISTILL_TEXT.format(
        data=front_matter(source, came_from, "distillation"),
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
        chart=CHART_FILE,
        before=run.loss_before,
        after=run.loss_after,
        record_file=DISTILL_RECORD_FILE,
    )
