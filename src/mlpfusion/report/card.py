"""The model cards of compressed, tuned and distilled checkpoints."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mlpfusion.kinds.table import KIND_NAMES
from mlpfusion.record import RECORD_FILE, Origin, Record
from mlpfusion.report.cells import (
    budget_table,
    budget_words,
    data_words,
    layer_table,
    loading_lines,
    run_table,
    score_table,
    size_table,
)
from mlpfusion.storage.yaml import read_front_matter
from mlpfusion.tune.record import DISTILL_RECORD_FILE, TUNE_RECORD_FILE, DistillRecord, TuneRecord

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

{rows}
{budget}
The full record, with versions and the hash of the source weights, is in `{record_file}`.
"""


# Entries of the source's card kept for the compressed model; no scores, they were measured on the source.
_KEPT = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag", "library_name", "tags")


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

{layerwise}How it was chosen: {note}. The weights are those of seed {saved_seed}.

## Runs

{runs}

## How to load it

```python
{snippet}
```

The full record is in `{record_file}`.
"""


def tune_card(record: TuneRecord) -> str:
    """Text of README.md for a fine-tuned checkpoint."""
    recipe, names = record.recipe, record.names
    data = ModelCardData(
        library_name="transformers", tags=["mlp-fusion", names.pipeline_tag], pipeline_tag=names.pipeline_tag
    )
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
        scores=score_table(record).markdown(),
        layerwise=_layerwise(record),
        note=record.note,
        saved_seed=record.saved_seed,
        runs=run_table(record).markdown(),
        snippet=loading_lines(names.auto_class),
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
