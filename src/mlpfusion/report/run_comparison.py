"""The work behind `mlpfusion compare` and `mlpfusion measure`: options in, records out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mlpfusion.checkpoint.read import resolve
from mlpfusion.errors import InputError
from mlpfusion.evaluate.approximation import BlockError, Probe
from mlpfusion.evaluate.authors import last_texts
from mlpfusion.evaluate.comparison import compare_methods, load_checkpoint, measure_checkpoint
from mlpfusion.methods import ALL_METHODS, method_from_name
from mlpfusion.outcomes import Progress
from mlpfusion.record import versions
from mlpfusion.report.chart import write_chart
from mlpfusion.report.comparison import comparison_markdown, comparison_record
from mlpfusion.tasks.text import read_texts, token_batches


def run_comparison(
    model: str, *, data: str, column: str | None, max_samples: int, progress: Progress, **run: Any
) -> Any:
    """The record of `compare_methods` on a checkpoint.

    `run` holds methods, layers, keep_ratio, seeds, scalar and authors_quirks. Everything is checked before the weights
    are read. Raises `InputError`.
    """
    methods, seeds = parse_methods(run["methods"]), parse_seeds(run["seeds"])
    Probe(run["scalar"])
    texts = read_texts(Path(data), column=column, max_samples=max_samples)
    folder, loaded = load_checkpoint(model)
    batches = token_batches(folder, texts)
    selection = {name: run[name] for name in ("layers", "keep_ratio", "scalar")}
    authors_batch = _authors_batch(folder, texts) if run["authors_quirks"] else None
    options = {"seeds": seeds, "authors_batch": authors_batch, "progress": progress}
    rows = compare_methods(loaded, methods, batches, **selection, **options)
    measured_on = {"model": Path(model).name, "data": Path(data).name, "samples": len(texts)}
    where = {"device": str(loaded.device), "threads": torch.get_num_threads(), "versions": versions()}
    return comparison_record(rows, measured_on | selection | {"seeds": seeds} | where)


def run_measurement(
    original: str, compressed: str, *, data: str, column: str | None, max_samples: int, **run: Any
) -> list[BlockError]:
    """The errors of the blocks of a compressed checkpoint on the texts of a file.

    `run` holds scalar, seed and authors_quirks. Raises `InputError`.
    """
    probe = Probe(run["scalar"], run["seed"])
    texts = read_texts(Path(data), column=column, max_samples=max_samples)
    folder = resolve(original)
    authors_batch = _authors_batch(folder, texts) if run["authors_quirks"] else None
    return measure_checkpoint(original, compressed, token_batches(folder, texts), probe, authors_batch)


def write_comparison(record: dict[str, Any], folder: Path) -> list[Path]:
    """Writes comparison.json, comparison.md and, where matplotlib is installed, comparison.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "comparison.json", folder / "comparison.md"
    data.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text.write_text(comparison_markdown(record), encoding="utf-8")
    return [data, text, *write_chart(record, folder / "comparison.png")]


def parse_methods(text: str) -> list[Any]:
    """Configs from names with options, as in `all,fusion:refine=false`; `all`: of every kind. Raises `InputError`."""
    methods: list[Any] = []
    for item in text.split(","):
        every = item.strip() == "all"
        methods += [method() for method in ALL_METHODS] if every else [_parse_method(item.strip())]
    return methods


def parse_seeds(text: str) -> list[int]:
    """Whole numbers from a list like `0,1,2`. Raises `InputError` for anything else."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isdigit() for item in items):
        raise InputError(f"`seeds` must be a list of whole numbers like 0,1,2, got {text!r}")
    return [int(item) for item in items]


def _authors_batch(folder: Path, texts: Sequence[str]) -> Mapping[str, Tensor]:
    (batch,) = token_batches(folder, last_texts(texts))
    return batch


def _parse_method(text: str) -> Any:
    name, *options = text.split(":")
    pairs = [option.partition("=") for option in options]
    return method_from_name(name, {option: yaml.safe_load(value) for option, _, value in pairs})
