"""The commands of records, as one would type them again."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlpfusion.data.unlabelled.data_free import is_data_free
from mlpfusion.methods.names import method_name
from mlpfusion.methods.table import METHODS
from mlpfusion.options.calibration import CALIBRATION_SAMPLES
from mlpfusion.options.distill import DistillOptions
from mlpfusion.options.fields import leaves
from mlpfusion.options.flags import command_line
from mlpfusion.options.selection import Selection
from mlpfusion.options.tune import TuneOptions
from mlpfusion.record import Record
from mlpfusion.tune.record import DistillRecord, TuneRecord


def compress_command(record: Record) -> str:
    """The `mlpfusion compress` of a record."""
    recipe, origin = record.recipe, record.model
    defaults = {method_name(method): asdict(method()) for method in METHODS}.get(recipe["method"], {})
    own = {name: value for name, value in recipe.get("options", {}).items() if value != defaults.get(name)}
    values = {"method": recipe["method"], "option": own} | _told(Selection, recipe)
    values |= {"seed": recipe["seed"]} if recipe["seed"] else {}
    values |= {"sequential": True} if recipe.get("sequential") else {}
    values |= _calibration(recipe.get("calibration"))
    values |= {"task": recipe["task"]["name"]} if recipe.get("task") else {}
    if origin is not None and origin.revision is not None:
        values["revision"] = origin.revision
    return command_line(["mlpfusion", "compress", "MODEL" if origin is None else origin.name, "OUT"], values)


def tune_command(record: TuneRecord) -> str:
    """The `mlpfusion tune` of a record; `--train` is left out, as the record does not name it."""
    return command_line(["mlpfusion", "tune", str(record.recipe["model"]), "OUT"], _told(TuneOptions, record.recipe))


def distill_command(record: DistillRecord) -> str:
    """The `mlpfusion distill` of a record."""
    recipe = record.recipe
    data = {} if recipe.get("task") else {"data": record.data}
    names = [str(recipe["original"]), str(recipe["compressed"])]
    return command_line(["mlpfusion", "distill", *names, "OUT"], data | _told(DistillOptions, recipe))


def reproduce_command(record: Mapping[str, Any]) -> str:
    """The `mlpfusion reproduce` of a record."""
    return command_line(["mlpfusion", "reproduce", record["name"]], {"model": record["model"], "out": "DIR"})


def _calibration(seen: dict[str, Any] | None) -> dict[str, Any]:
    if seen is None or "file" not in seen:
        return {}
    values = {"data_free": True} if is_data_free(seen) else {"calibration": seen["file"]}
    values |= {"column": seen["column"]} if seen.get("column") else {}
    return values | ({} if seen["samples"] == CALIBRATION_SAMPLES else {"calibration_samples": seen["samples"]})


def _told(options: type, recipe: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe for flags of `options`, without the defaults."""
    flags = {leaf.name: leaf for leaf in leaves(options) if leaf.about.has_flag and not leaf.about.is_argument}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}
    return {name: value for name, value in values.items() if name in flags and value != flags[name].default}
