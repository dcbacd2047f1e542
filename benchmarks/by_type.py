"""Runs a benchmark over model types and keeps its record: one row a type, in the order of their names."""

import argparse
import gc
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from mlpfusion.record import versions

Row = dict[str, Any]


def record_by_type(
    description: str | None,
    out: Path,
    all_types: Callable[[], Iterable[str]],
    measure: Callable[[str], Any],
    line: Callable[[Row], str],
) -> None:
    """Measures the types named on the command line, or all, and writes the record; prints `line` of what changed.

    `measure` returns a dataclass. With types named, the other rows of the record stay as they are.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--out", type=Path, default=out)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    known = json.loads(arguments.out.read_text(encoding="utf-8"))["types"] if arguments.out.exists() else []
    before: dict[str, Row] = {row["model_type"]: row for row in known}
    rows = before if arguments.types else {}
    for model_type in arguments.types or all_types():
        row = json.loads(json.dumps(asdict(measure(model_type))))  # tuples as lists, as they are read back
        if before.get(model_type) != row:
            print(line(row), flush=True)
        rows[model_type] = row
        gc.collect()
    record = {"versions": versions(), "types": [rows[name] for name in sorted(rows)]}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
