"""The model card of a compressed checkpoint: what was done, and what was measured while doing it."""

from typing import Any

from huggingface_hub import ModelCardData

from mlpfusion.record import RECORD_FILE, Record, SiteRecord

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
from transformers import AutoModel

model = AutoModel.from_pretrained("path/or/id")  # or any other Auto class
```

{without} `mlpfusion.fold(model)` gives the form to deploy. The licence is that of the source model.

## Layers

| layer | width before | after | parameters after | inertia left | largest cluster | single neurons |
|---|---|---|---|---|---|---|
{rows}
{budget}
The full record, with versions and the hash of the source weights, is in `{record_file}`.
"""


_REFUSED = "Without the package transformers refuses the checkpoint with a shape error."
_WHAT = {
    "narrow": ("narrower MLPs", _REFUSED),
    "low-rank": ("low-rank factors in the MLPs", _REFUSED),
    "masked": (
        "zeros in the MLPs",
        "Without the package transformers loads it as well, but nothing then keeps the zeros in fine-tuning.",
    ),
    "routed": ("experts and routers in the MLPs", _REFUSED),
}


def model_card(record: Record, source: str, *, hub_id: bool) -> str:
    """The text of README.md for `record`; `source` is the name of the original, linked as base model if on the Hub."""
    base = source if hub_id else None
    data = ModelCardData(base_model=base, library_name="transformers", tags=["mlp-fusion", "compression"])
    before, after = record.original, record.compressed
    what, without = _WHAT[record.sites[0].kind]
    return _TEXT.format(
        data=data.to_yaml(),
        title=f"{source.rpartition('/')[2]}, compressed",
        what=what,
        without=without,
        source=f"[{source}](https://huggingface.co/{source})" if hub_id else f"`{source}`",
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
    if calibration.get("file") == "random tokens":
        return f"No data was used: calibrated on {calibration['samples']:,} sequences of random tokens."
    source = f" of `{calibration['file']}`" if "file" in calibration else ""
    return (
        f"Calibrated on {calibration['samples']:,} unlabelled samples{source}, {calibration['tokens']:,} tokens. "
        "Nothing was trained on a task after it."
    )


def _budget(budget: dict[str, Any] | None) -> str:
    """What each layer got of a budget; nothing where there was none."""
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
