"""The work behind `mlpfusion compare` and `mlpfusion measure`: options in, records out."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from mlpfusion.batch import Batch, with_decoder_inputs
from mlpfusion.checkpoint.tokenizer import token_batches
from mlpfusion.checks import seed_number, user_path
from mlpfusion.data.calibration_texts import CalibrationTexts
from mlpfusion.data.files.rows import has_columns, short_name
from mlpfusion.data.files.text import read_texts
from mlpfusion.data.random_tokens import RandomTokens
from mlpfusion.errors import InputError, shown
from mlpfusion.measure.approximation import Probe
from mlpfusion.measure.comparison import compare_methods, load_checkpoint
from mlpfusion.measure.paper_numbers import last_texts
from mlpfusion.methods.names import method_name, parse_method
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import ON_TASK, ONE_SHOT
from mlpfusion.progress import Progress
from mlpfusion.record import versions
from mlpfusion.report.comparison import comparison_markdown, comparison_record
from mlpfusion.report.comparison_chart import write_chart
from mlpfusion.sites.table import read_architecture
from mlpfusion.storage.output import Occupant, staged_folder


def run_comparison(
    model: str, *, data: str, column: str | None, max_samples: int, progress: Progress, **run: Any
) -> Any:
    """The record of `compare_methods` on a checkpoint.

    `run` holds methods, layers, keep_ratio, seeds, scalar and authors_quirks; it may hold `calibration`, a file or data
    set as in `read_texts` (without it, random tokens), `calibration_samples`, and `architecture`, the path of a row
    file. Everything is checked before the
    weights are read. Raises `InputError`.
    """
    methods, seeds = parse_methods(run["methods"]), parse_seeds(run["seeds"])
    wanted = any(needs_batches(method) for method in methods)
    for name in ("calibration", "calibration_samples"):
        if not wanted and run.get(name) is not None:
            raise InputError(f"`{name}` must be left out where no method is calibrated, got {run['methods']}")
    tables = [file for file in (data, run.get("calibration")) if file is not None and has_columns(file)]
    source = _calibration_source(
        run.get("calibration"), column if run.get("calibration") in tables else None, run.get("calibration_samples")
    )
    Probe(run["scalar"])
    texts = read_texts(data, column=column if data in tables or not tables else None, max_samples=max_samples)
    row = None if run.get("architecture") is None else read_architecture(user_path("architecture", run["architecture"]))
    folder, loaded = load_checkpoint(model)
    batches = with_decoder_inputs(token_batches(folder, texts, loaded.config), loaded.config)
    calibration = {seed: source.batches(folder, loaded.config, seed) for seed in seeds} if wanted else None
    selection = {name: run[name] for name in ("layers", "keep_ratio", "scalar")}
    authors_batch = _authors_batch(folder, texts, loaded.config) if run["authors_quirks"] else None
    options = {"seeds": seeds, "authors_batch": authors_batch, "calibration": calibration, "progress": progress}
    rows = compare_methods(loaded, methods, batches, architecture=row, **selection, **options)
    measured_on = {"model": Path(model).name, "data": short_name(data), "samples": len(texts)}
    if wanted:
        measured_on["calibration"] = source.record() | {"samples": source.num_samples}
    where = {"device": str(loaded.device), "threads": torch.get_num_threads(), "versions": versions()}
    return comparison_record(rows, measured_on | selection | {"seeds": seeds} | where)


def write_comparison(record: dict[str, Any], folder: Path, replacing: Occupant | None = None) -> list[Path]:
    """Writes comparison.json, comparison.md and, where matplotlib is installed, comparison.png into the new `folder`.

    Complete or not at all. Raises `InputError` as `staged_folder` does.
    """
    with staged_folder(folder, replacing) as staged:
        data, text = staged / "comparison.json", staged / "comparison.md"
        data.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        text.write_text(comparison_markdown(record), encoding="utf-8")
        written = [data, text, *write_chart(record, staged / "comparison.png")]
    return [folder / path.name for path in written]


def parse_methods(text: str) -> list[Any]:
    """Configs from names with options, as in `all,fusion:refine=false`; `all`: of every kind. Raises `InputError`."""
    methods: list[Any] = []
    for item in text.split(","):
        every = item.strip() == "all"
        methods += [method() for method in ONE_SHOT] if every else [_one_shot(item.strip())]
    return methods


def _calibration_source(
    file: str | None, column: str | None, num_samples: int | None
) -> CalibrationTexts | RandomTokens:
    count = 256 if num_samples is None else num_samples
    return RandomTokens(count) if file is None else CalibrationTexts.read(file, column, count)


def parse_seeds(text: str) -> list[int]:
    """Whole numbers from a list like `0,1,2`. Raises `InputError` for anything else."""
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,12}", item) for item in items):
        raise InputError(f"`seeds` must be a list of whole numbers like 0,1,2, got {shown(text)}")
    return [seed_number("seeds", int(item)) for item in items]


def _authors_batch(folder: Path, texts: Sequence[str], config: PreTrainedConfig) -> Batch:
    (batch,) = with_decoder_inputs(token_batches(folder, last_texts(texts), config), config)
    return batch


def _one_shot(text: str) -> Any:
    name = text.partition(":")[0]
    if name in [method_name(method) for method in ON_TASK]:
        raise InputError(
            f"`methods` must need no labels here, got {name}, which learns on a task: "
            "`mlpfusion compress --task`, then `mlpfusion tune` its result"
        )
    return parse_method(text)
