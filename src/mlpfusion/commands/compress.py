"""A run from checkpoint to checkpoint: its fields, read from YAML, checked before any work, and carried out."""

import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.files import carried_files, left_files
from mlpfusion.checkpoint.read import check_fit, empty_model, load_model, origin, read_config, resolve
from mlpfusion.checkpoint.save import save_compressed
from mlpfusion.checks import seed_number, user_path
from mlpfusion.compression.budget import check_budget
from mlpfusion.compression.calibration import check_calibration
from mlpfusion.compression.checks import check_not_compressed, check_sizes
from mlpfusion.compression.compress import compress
from mlpfusion.compression.on_task import install_learned, learn
from mlpfusion.compression.plan import choose_sites, make_plan
from mlpfusion.data.calibration_texts import CalibrationTexts
from mlpfusion.data.chosen import custom_task, split_train, task_data
from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.random_tokens import RandomTokens
from mlpfusion.data.task_model import Source, empty_for_task, encode_for, load_for_task, open_source
from mlpfusion.errors import InputError, shown
from mlpfusion.extras import check_training_installed
from mlpfusion.methods.names import method_from_name, method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import CALIBRATED, METHODS, ON_TASK
from mlpfusion.options.selection import Selection
from mlpfusion.options.training import Finetune
from mlpfusion.progress import Progress
from mlpfusion.record import RECORD_FILE, Record
from mlpfusion.report.card import model_card
from mlpfusion.sites.row_check import check_visited
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture, find_architecture
from mlpfusion.storage.output import Occupant, check_output, staged_folder

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
    if recipe.method in [method_name(method) for method in ON_TASK]:
        check_training_installed()
        return run_task_recipe(recipe, progress)
    replaced = check_recipe_output(recipe)
    method = _method(recipe)
    selection = _selection(recipe)
    selection.check_size_given()
    check_sizes(method, selection)
    seed_number("seed", recipe.seed)
    _check_no_task(recipe)
    texts = _calibration_source(recipe, method)
    source, config, architecture = check_source_model(recipe, selection)
    batches = None if texts is None else texts.batches(source, config, recipe.seed)
    model = load_model(source, config)
    record = compress(
        model,
        method,
        layers=recipe.layers,
        keep_ratio=recipe.keep_ratio,
        width=recipe.width,
        budget=recipe.budget,
        round_to=recipe.round_to,
        seed=recipe.seed,
        calibration=batches,
        sequential=recipe.sequential,
        architecture=architecture,
        device=recipe.device,
        progress=progress,
    )
    return write_result(recipe, source, model, _with_source(record, texts, recipe.seed), replaced)


def _selection(recipe: Recipe) -> Selection:
    return Selection(recipe.layers, recipe.keep_ratio, recipe.width, recipe.budget, recipe.round_to)


def check_recipe_output(recipe: Recipe) -> Occupant | None:
    """The folder that the result may replace. Raises `InputError` as `check_output` does."""
    reads = (recipe.model, recipe.calibration, recipe.train, recipe.architecture)
    return check_output(user_path("out", recipe.out), overwrite=recipe.overwrite, reads=reads)


def check_source_model(recipe: Recipe, selection: Selection) -> tuple[Path, PreTrainedConfig, Architecture]:
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
    method = method_from_name(recipe.method, recipe.options, METHODS)
    if recipe.data_free and type(method) not in CALIBRATED:
        able = ", ".join(method_name(one) for one in CALIBRATED)
        raise InputError(f"`data_free` must be left out but for {able}, got the method {recipe.method}")
    return method


def _calibration_source(recipe: Recipe, method: Any) -> CalibrationTexts | RandomTokens | None:
    """Where the calibration is from, None where there is none. Raises `InputError` where the method disagrees."""
    given = recipe.calibration is not None or recipe.data_free
    if recipe.data_free and not needs_batches(method):
        raise InputError(
            "`data_free` must be given once: the flag calibrates on random tokens, the option of the method on what "
            "the norms of the model let through"
        )
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


def _check_plan(config: PreTrainedConfig, architecture: Architecture, selection: Selection) -> None:
    """Raises `InputError` for a bad layer or width, or a row that does not fit, with shapes only: no weight is read."""
    check_not_compressed(config)
    model = empty_model(config)
    sites = find_sites(model, architecture)
    if selection.budget is None:
        make_plan(sites, selection)
    else:
        check_budget(model, sites, selection)
    check_visited(model, choose_sites(sites, selection.layers))


# What other kinds of method take.
_REFUSED = ("calibration", "column", "sequential", "data_free")


def run_task_recipe(recipe: Recipe, progress: Progress | None = None) -> Record:
    """Compresses `recipe.model` into the new folder `recipe.out`, in the class that the checkpoint has.

    The method learns on a copy with the head of the task, which is drawn from the seed where the checkpoint has none;
    that head is not saved. Learned on is the training part that `tune` has with the same `max_train_samples`: what it
    holds out to choose on is left out here too. All that can be checked is checked before the weights are read; `out`
    appears complete or not at all. Raises `InputError`.
    """
    replaced = check_recipe_output(recipe)
    method = _checked_method(recipe)
    selection = _selection(recipe)
    folder, config, architecture = check_source_model(recipe, selection)
    source = open_source(str(folder), new_head=recipe.new_head)
    data = _training_part(recipe, source)
    empty_for_task(source, data.task)
    model = load_for_task(source, data.task, recipe.seed)
    learned = learn(
        model, method, data, selection, recipe.seed, architecture=architecture, device=recipe.device, progress=progress
    )
    del model
    compressed = load_model(folder, config)
    return write_result(recipe, folder, compressed, install_learned(compressed, learned), replaced)


def _checked_method(recipe: Recipe) -> Any:
    """The config of the method. Raises `InputError` for a bad option, and for what does not go with the kind."""
    method = method_from_name(recipe.method, recipe.options, ON_TASK)
    if recipe.keep_ratio is None and recipe.width is None and recipe.budget is None:
        raise InputError(f"`keep_ratio` must be given for {recipe.method}, got none")
    check_sizes(method, _selection(recipe))
    for name in _REFUSED:
        if getattr(recipe, name):
            raise InputError(f"`{name}` must be left out for {recipe.method}, which learns on a task")
    if recipe.calibration_samples != Recipe.calibration_samples:
        raise InputError(f"`calibration_samples` must be left out for {recipe.method}, which learns on a task")
    if recipe.task is None and not (recipe.train and recipe.text_column and recipe.label_column):
        raise InputError(f"`task` must be given for {recipe.method}, or `train` with `text_column` and `label_column`")
    Finetune(max_train_samples=recipe.max_train_samples)
    return method


def _training_part(recipe: Recipe, source: Source) -> EncodedTask:
    """What `tune` would train on, as token ids. Raises `InputError` as the loaders do."""
    columns = custom_task(recipe.text_column, recipe.label_column, regression=recipe.regression, task=recipe.task)
    validation = None if recipe.task is not None else recipe.train  # asked for by the loader, not looked at
    found = task_data(recipe.task, recipe.train, validation, columns)
    config = Finetune(max_train_samples=recipe.max_train_samples)
    data = encode_for(source, replace(found, evaluation={}), recipe.max_length, config)
    train, _ = split_train(data, config)
    return replace(data, train=train)
