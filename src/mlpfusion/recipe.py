"""A run from checkpoint to checkpoint: its fields, read from YAML, checked before any work, and carried out."""

import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.architectures.sites import find_sites
from mlpfusion.architectures.table import Architecture, find_architecture
from mlpfusion.budget import check_budget
from mlpfusion.calibration import check_calibration
from mlpfusion.checkpoint.card import model_card
from mlpfusion.checkpoint.files import carried_files, left_files
from mlpfusion.checkpoint.output import Occupant, check_output, staged_folder
from mlpfusion.checkpoint.read import check_fit, empty_model, load_model, origin, read_config, resolve
from mlpfusion.checkpoint.save import save_compressed
from mlpfusion.checks import seed_number, user_path
from mlpfusion.compression import check_method, check_not_compressed, compress
from mlpfusion.errors import InputError, check_training_installed, shown
from mlpfusion.methods import CALIBRATED_METHODS, METHOD_TYPES, method_from_name, method_name
from mlpfusion.outcomes import Progress
from mlpfusion.plan import check_layers_form, check_one_size, check_round_to, make_plan
from mlpfusion.record import RECORD_FILE, Record
from mlpfusion.row_check import check_visited
from mlpfusion.task_methods import TASK_METHOD_TYPES
from mlpfusion.tasks.calibration_texts import CalibrationTexts
from mlpfusion.tasks.random_tokens import RandomTokens
from mlpfusion.yaml import check_type, read_yaml

# A frozen dataclass whose fields can be written in YAML: numbers, text, yes or no, and tuples of these.
Fields = TypeVar("Fields", bound=Any)


# What a task method learns on.
TASK_FIELDS = (
    "task",
    "train",
    "text_column",
    "label_column",
    "regression",
    "max_train_samples",
    "max_length",
    "new_head",
)


@dataclass(frozen=True)
class Recipe:
    """What to compress, how, and where to put it: the same fields as the flags of `mlpfusion compress`.

    `options` are the fields of the method's config; `calibration` is a file or data set as in `read_texts`, of which
    `calibration_samples` texts are drawn by `seed`, and `data_free` means as many sequences of random tokens instead;
    `task`, or `train` with `text_column` (two for pairs) and `label_column`, is what a task method learns on: the part
    that `mlpfusion tune` trains on with the same `max_train_samples`, `max_length` and `new_head`;
    `architecture` is the path of a row file for a model type that has no row of its own.
    """

    model: str = ""
    out: str = ""
    method: str = "fusion"
    options: dict[str, Any] = field(default_factory=dict)
    layers: str = "all"
    keep_ratio: float | None = None
    width: int | None = None
    budget: str | None = None
    round_to: int = 1
    seed: int = 0
    device: str = "cpu"
    revision: str | None = None
    architecture: str | None = None
    overwrite: bool = False
    calibration: str | None = None
    column: str | None = None
    calibration_samples: int = 256
    sequential: bool = False
    data_free: bool = False
    task: str | None = None
    train: str | None = None
    text_column: tuple[str, ...] = ()
    label_column: str | None = None
    regression: bool = False
    max_train_samples: int | None = None
    max_length: int | None = None
    new_head: bool = False


def read_recipe(path: Path, into: Fields) -> Fields:
    """`into` with the fields in a YAML file. Raises `InputError` for an unknown key, a wrong type, or no YAML."""
    data = read_yaml(path, "recipe")
    if not isinstance(data, dict):
        raise InputError(f"`recipe` must hold keys and values, got {shown(data)}")
    return with_fields(into, data)


def read_job(empty: Fields, recipe: str | None, flags: dict[str, Any]) -> Fields:
    """`empty` with the fields of the YAML file `recipe`, if one is named, and over them the flags that were given.

    Raises `InputError` as `read_recipe` does.
    """
    job = empty if recipe is None else read_recipe(Path(recipe), empty)
    return with_fields(job, {name: value for name, value in flags.items() if value is not None and value is not False})


def with_fields(recipe: Fields, data: dict[str, Any]) -> Fields:
    """`recipe`, a frozen dataclass, with some fields replaced. Raises `InputError` for unknown keys and wrong types."""
    known = {item.name: item.type for item in fields(recipe)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise InputError(f"a recipe must have keys among {', '.join(known)}, got {shown(name)}")
        values[name] = _checked(name, value, known[name])
    return replace(recipe, **values)


def recipe_command(recipe: Recipe, model: str) -> str:
    """The command line that carries out `recipe`, with `model` for the name of the checkpoint."""
    defaults = asdict(Recipe())
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {_written(value)}")
        for name, value in asdict(recipe).items()
        if name not in ("model", "out", "options") and (value != defaults[name] or name == "method")
    ]
    options = [f"--option {name}={value}" for name, value in recipe.options.items()]
    return " ".join(["mlpfusion compress", model, recipe.out, *flags, *options])


def _written(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def run_recipe(recipe: Recipe, progress: Progress | None = None) -> Record:
    """Compresses the checkpoint `recipe.model` into the new folder `recipe.out`.

    All that can be checked without the weights is checked before they are read; `out` appears complete or not at all.
    Raises `InputError` for anything wrong with the recipe or the checkpoint.
    """
    for name in ("model", "out"):
        if not getattr(recipe, name):
            raise InputError(f"`{name}` must be given, on the command line or in the recipe")
    if recipe.method in TASK_METHOD_TYPES:
        check_training_installed()
        from mlpfusion.task_recipe import run_task_recipe

        return run_task_recipe(recipe, progress)
    replaced = check_recipe_output(recipe)
    method = _method(recipe)
    sizes = {name: getattr(recipe, name) for name in ("keep_ratio", "width", "budget")}
    check_method(method, recipe.width, recipe.round_to, recipe.budget)
    check_layers_form(recipe.layers)
    seed_number("seed", recipe.seed)
    check_round_to(recipe.round_to)
    check_one_size(sizes)
    _check_no_task(recipe)
    texts = _calibration_source(recipe, method)
    selection = {"layers": recipe.layers, "round_to": recipe.round_to, **sizes}
    source, config, architecture = check_source_model(recipe, selection)
    batches = None if texts is None else texts.batches(source, config, recipe.seed)
    model = load_model(source, config)
    chosen = {name: getattr(recipe, name) for name in ("seed", "sequential", "device")}
    given = {"architecture": architecture, "progress": progress, "calibration": batches}
    record = _with_source(compress(model, method, **selection, **chosen, **given), texts, recipe.seed)
    return write_result(recipe, source, model, record, replaced)


def check_recipe_output(recipe: Recipe) -> Occupant | None:
    """The folder that the result may replace. Raises `InputError` as `check_output` does."""
    reads = (recipe.model, recipe.calibration, recipe.train, recipe.architecture)
    return check_output(user_path("out", recipe.out), overwrite=recipe.overwrite, reads=reads)


def check_source_model(recipe: Recipe, selection: dict[str, Any]) -> tuple[Path, PreTrainedConfig, Architecture]:
    """Folder, config and row of `recipe.model`, checked; no weight is read.

    `selection` holds layers and sizes. Raises `InputError`.
    """
    _check_device(recipe.device)
    source = resolve(recipe.model, recipe.revision)
    config = read_config(source)
    architecture = find_architecture(config.model_type, recipe.architecture)
    _check_plan(config, architecture, selection)
    check_fit(source, config)
    carried_files(source)
    if left := left_files(source):
        some = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        warnings.warn(f"files that belong to no model or tokenizer are left out: {some}", stacklevel=3)
    return source, config, architecture


def write_result(
    recipe: Recipe, source: Path, model: PreTrainedModel, record: Record, replaced: Occupant | None
) -> Record:
    """Writes model, tokenizer, record and model card into the new folder `recipe.out`, complete or not at all.

    The record comes back as it is written, with where the model came from and the sizes of the files.
    """
    config, came_from = read_config(source), origin(recipe.model, recipe.revision, source)
    with staged_folder(user_path("out", recipe.out), replaced) as folder:
        record = replace(save_compressed(model, source, config, record, folder), model=came_from)
        (folder / "README.md").write_text(model_card(record, source, model), encoding="utf-8")
        (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    return record


def _method(recipe: Recipe) -> Any:
    """The config of the method. Raises `InputError` as `method_from_name` does, and for a wrong `data_free`."""
    method = method_from_name(recipe.method, recipe.options, METHOD_TYPES | TASK_METHOD_TYPES)
    if recipe.data_free and type(method) not in CALIBRATED_METHODS:
        able = ", ".join(method_name(one) for one in CALIBRATED_METHODS)
        raise InputError(f"`data_free` must be left out but for {able}, got the method {recipe.method}")
    return method


def _calibration_source(recipe: Recipe, method: Any) -> CalibrationTexts | RandomTokens | None:
    """Where the calibration is from, None where there is none. Raises `InputError` where the method disagrees."""
    given = recipe.calibration is not None or recipe.data_free
    check_calibration(method, given=given, sequential=recipe.sequential)
    if recipe.data_free and recipe.calibration is not None:
        raise InputError(f"`calibration` must be left out with `data_free`, got {recipe.calibration}")
    if recipe.calibration is None and recipe.column is not None:
        raise InputError(f"`column` must be left out without `calibration`, got {recipe.column!r}")
    if not given and recipe.calibration_samples != Recipe.calibration_samples:
        got = f"got {shown(recipe.calibration_samples)}"
        raise InputError(f"`calibration_samples` must be left out without `calibration` or `data_free`, {got}")
    if recipe.data_free:
        return RandomTokens(recipe.calibration_samples)
    if recipe.calibration is None:
        return None
    return CalibrationTexts.read(recipe.calibration, recipe.column, recipe.calibration_samples)


def _with_source(record: Record, texts: CalibrationTexts | RandomTokens | None, seed: int) -> Record:
    """The record that says where its calibration is from."""
    if texts is None:
        return record
    used = record.recipe["calibration"] | texts.record() | {"seed": seed}
    return replace(record, recipe=record.recipe | {"calibration": used})


def _check_no_task(recipe: Recipe) -> None:
    """Raises `InputError` if a task is given to a method that does not learn on one."""
    for name in TASK_FIELDS:
        if getattr(recipe, name):
            raise InputError(f"`{name}` must be left out for {recipe.method}, which does not learn on a task")
    if recipe.max_length != Recipe.max_length:
        raise InputError(f"`max_length` must be left out for {recipe.method}, which does not learn on a task")


def _check_device(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise InputError(f"`device` must be cpu or cuda, got {shown(device)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("`device` must be cpu on this machine, got 'cuda', but torch sees no CUDA device")


def _check_plan(config: PreTrainedConfig, architecture: Architecture, selection: dict[str, Any]) -> None:
    """Raises `InputError` for a bad layer or width, or a row that does not fit, with shapes only: no weight is read."""
    check_not_compressed(config)
    model = empty_model(config)
    sites, sizes = find_sites(model, architecture), dict(selection)
    if (budget := sizes.pop("budget")) is not None:
        check_budget(model, sites, budget, sizes["layers"], sizes["round_to"])
        sizes["keep_ratio"] = 1.0
    check_visited(model, make_plan(sites, **sizes))


def _checked(name: str, value: Any, wanted: Any) -> Any:
    if get_origin(wanted) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(name, item, get_args(wanted)[0]) for item in items)
    kinds = get_args(wanted) if isinstance(wanted, UnionType) else (get_origin(wanted) or wanted,)
    if name == "layers" and type(value) is int:  # `layers: 3` in YAML
        return str(value)
    return check_type(f"`{name}`", value, kinds)
