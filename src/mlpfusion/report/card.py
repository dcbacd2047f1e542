"""The model cards of compressed, tuned and distilled checkpoints."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from mlpfusion.data.unlabelled.data_free import is_data_free
from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.record import RECORD_FILE, Origin, Record, SiteRecord
from mlpfusion.storage.yaml import read_front_matter
from mlpfusion.tune.record import DISTILL_RECORD_FILE, TUNE_RECORD_FILE, DistillRecord, RunRecord, TuneRecord

_TEXT = """\
---
{data}
---

# {title}

{source} with {what}, made by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}.
Method `{method}`, layers `{layers}`, seed {seed}. {data_used}

| | before | after |
|---|---|---|
| parameters | {before_parameters:,} | {after_parameters:,} ({parameters_share:.1f} %) |
| bytes | {before_bytes:,} | {after_bytes:,} ({bytes_share:.1f} %) |

## How to load it

```python
import mlpfusion  # lets transformers build the compressed blocks
{snippet}
```

{without} `mlpfusion.fold(model)` gives the form to deploy and to quantise. The licence is that of the source model.

## Layers

| layer | width before | after | parameters after | inertia left | largest cluster | single neurons |
|---|---|---|---|---|---|---|
{rows}
{budget}
The full record, with versions and the hash of the source weights, is in `{record_file}`.
"""


# Entries of the source's card kept for the compressed model; no scores, they were measured on the source.
_KEPT = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag", "library_name", "tags")


def model_card(record: Record, source: Path, model: PreTrainedModel) -> str:
    """Text of README.md; licence, language and tags from the card in `source`."""
    came_from = record.model
    assert came_from is not None
    before, after = record.original, record.compressed
    kind = KIND_NAMES[record.sites[0].kind]
    return _TEXT.format(
        data=front_matter(source, came_from),
        title=f"{plain(came_from.name.rpartition('/')[2])}, compressed",
        what=kind.blocks,
        without=kind.without_package,
        source=_link(came_from),
        snippet=_snippet(source, model),
        version=record.versions["mlpfusion"],
        method=record.recipe["method"],
        layers=record.recipe["layers"],
        seed=record.recipe["seed"],
        data_used=_data_used(record),
        before_parameters=before.parameters,
        after_parameters=after.parameters,
        parameters_share=100 * after.parameters / before.parameters,
        before_bytes=before.bytes,
        after_bytes=after.bytes,
        bytes_share=100 * after.bytes / before.bytes,
        rows="\n".join(_row(site) for site in record.sites),
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


def front_matter(source: Path, came_from: Origin) -> str:
    """The metadata block of a card: licence, language and tags are those of the card in `source`."""
    source_data = read_front_matter(source / "README.md")
    entries = {name: source_data[name] for name in _KEPT if _is_text(source_data.get(name))}
    is_sentence_model = (source / "modules.json").is_file()
    entries.setdefault("library_name", "sentence-transformers" if is_sentence_model else "transformers")
    tags = entries.pop("tags", [])
    tags = [*([tags] if isinstance(tags, str) else tags), "mlp-fusion", "compression"]
    older = source_data.get("base_model") if _is_text(source_data.get("base_model")) else None
    base = came_from.name if came_from.is_hub_id else older
    return ModelCardData(base_model=base, tags=list(dict.fromkeys(tags)), **entries).to_yaml()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _link(came_from: Origin) -> str:
    """Name of the source; a link with its commit if on the Hub."""
    if not came_from.is_hub_id:
        return code(came_from.name)
    commit = f" (commit `{came_from.commit}`)" if came_from.commit else ""
    return f"[{came_from.name}](https://huggingface.co/{came_from.name}){commit}"


def _snippet(source: Path, model: PreTrainedModel) -> str:
    """Lines of Python to load the checkpoint in its class."""
    if (source / "modules.json").is_file():
        name, library, call = "SentenceTransformer", "sentence_transformers", "SentenceTransformer"
    else:
        name, library = _auto_class(model.config, type(model).__name__), "transformers"
        call = f"{name}.from_pretrained"
    return f'from {library} import {name}\n\nmodel = {call}("path/or/id")'


def _auto_class(config: PreTrainedConfig, class_name: str) -> str:
    """Name of the Auto class of transformers for `class_name`; `class_name` without any."""
    autos = [
        auto
        for auto in vars(modeling_auto).values()
        if isinstance(auto, type) and issubclass(auto, _BaseAutoModelClass)
    ]
    for auto in [AutoModel, *autos]:
        mapping = getattr(auto, "_model_mapping", None)
        names = None if mapping is None else mapping._model_mapping.get(config.model_type)
        if class_name in ([names] if isinstance(names, str) else names or []):
            return auto.__name__
    return class_name


def _data_used(record: Record) -> str:
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
    source = f" of {code(calibration['file'])}" if "file" in calibration else ""
    return (
        f"Calibrated on {calibration['samples']:,} unlabelled samples{source}, {calibration['tokens']:,} tokens. "
        "Nothing was trained on a task after it."
    )


def _budget(budget: dict[str, Any] | None) -> str:
    """Table of the layers' shares of a budget; empty without a budget."""
    if budget is None:
        return ""
    rows = [f"| {s['path']} | {s['width']:,} | {100 * s['share']:.1f} % | {s['error']:.3g} |" for s in budget["sites"]]
    kept = f"{budget['kept']:,} of {budget['total']:,} {budget['unit']}"
    head = f"The widths spread a budget of {budget['budget']} ({kept}). Error: {budget['measure']}."
    return "\n".join(["", head, "", "| layer | width | share | error |", "|---|---|---|---|", *rows, ""])


def _row(site: SiteRecord) -> str:
    metrics = site.metrics
    inertia = f"{100 * metrics['inertia_ratio']:.1f} %" if "inertia_ratio" in metrics else "-"
    clusters = [f"{metrics[name]:,}" if name in metrics else "-" for name in ("largest_cluster", "singletons")]
    cells = [site.path, f"{site.original_width:,}", site.size(), f"{site.parameters:,}", inertia, *clusters]
    return "| " + " | ".join(cells) + " |"


_TUNE_TEXT = """\
---
{data}
---

# {title}, tuned on {task}

{model} fine-tuned on {task} ({source}) by [mlpfusion](https://pypi.org/project/mlpfusion/) {version}, {epochs}
epochs, learning rate {rate:g}, batch size {batch_size}; {parameters:,} parameters.

| split | metric | mean over {seeds} | standard deviation |
|---|---|---|---|
{scores}

{layerwise}{adapter}How it was chosen: {note}. The weights are those of seed {saved_seed}.

## Runs

| learning rate | seed | {metric} on {selected_on} | steps | best step | seconds a step |
|---|---|---|---|---|---|
{runs}

## How to load it

```python
{loading}
```

The full record is in `{record_file}`.
"""
_LOADING = """\
import mlpfusion  # needed if the MLPs are compressed
from transformers import {auto_class}

model = {auto_class}.from_pretrained("path/or/id")"""
_LOADING_ADAPTED = """\
import mlpfusion

model = mlpfusion.load_adapted("path")"""


def tune_card(record: TuneRecord) -> str:
    """Text of README.md for a fine-tuned checkpoint."""
    recipe, first, names = record.recipe, record.runs[0], record.names
    data = ModelCardData(
        library_name="transformers", tags=["mlp-fusion", names.pipeline_tag], pipeline_tag=names.pipeline_tag
    )
    num_seeds = len(recipe["seeds"])
    return _TUNE_TEXT.format(
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
        adapter=_adapter(record),
        loading=_LOADING_ADAPTED if _is_beside(record) else _LOADING.format(auto_class=names.auto_class),
        record_file=TUNE_RECORD_FILE,
    )


def _layerwise(record: TuneRecord) -> str:
    if record.layerwise is None:
        return ""
    before, after = record.layerwise.loss_before, record.layerwise.loss_after
    return f"Before that, the compressed blocks were tuned layer by layer: Eq. 6 from {before:.5g} to {after:.5g}.\n\n"


def _is_beside(record: TuneRecord) -> bool:
    """Whether an adapter stands beside the weights, not merged."""
    return record.before is not None and not record.recipe["merge"]


def _adapter(record: TuneRecord) -> str:
    """What became of an adapter that trained again."""
    if record.before is None:
        return ""
    metric = record.runs[0].selection_metric
    changes = ", ".join(
        f"{metric} on {split} from {scores[metric][0]:.4f} to {record.scores[split][metric][0]:.4f}"
        for split, scores in record.before.items()
        if metric in scores
    )
    place = "It is in `adapter`, not merged." if _is_beside(record) else "It is merged into the weights."
    return f"An adapter was trained again: {changes}. {place}\n\n"


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
