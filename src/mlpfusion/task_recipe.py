"""A run from checkpoint to checkpoint by a method that learns on a labelled task."""

from dataclasses import replace
from typing import Any

from mlpfusion.checkpoint.read import load_model
from mlpfusion.compression import check_size_options
from mlpfusion.errors import InputError
from mlpfusion.methods import method_from_name
from mlpfusion.outcomes import Progress
from mlpfusion.recipe import Recipe, check_recipe_output, check_source_model, write_result
from mlpfusion.record import Record
from mlpfusion.task_methods import TASK_METHOD_TYPES
from mlpfusion.task_methods.compression import install_learned, learn
from mlpfusion.tasks.encode import EncodedTask
from mlpfusion.tune.config import Finetune
from mlpfusion.tune.data import custom_task, task_data
from mlpfusion.tune.finetune import split_train
from mlpfusion.tune.source import Source, empty_for_task, encode_for, load_for_task, open_source

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
    selection = {name: getattr(recipe, name) for name in ("layers", "keep_ratio", "width", "budget", "round_to")}
    folder, config, architecture = check_source_model(recipe, selection)
    source = open_source(str(folder), new_head=recipe.new_head)
    data = _training_part(recipe, source)
    empty_for_task(source, data.task)
    model = load_for_task(source, data.task, recipe.seed)
    assert recipe.keep_ratio is not None
    chosen = {"layers": recipe.layers, "keep_ratio": recipe.keep_ratio, "seed": recipe.seed, "device": recipe.device}
    learned = learn(model, method, data, architecture=architecture, progress=progress, **chosen)
    del model
    compressed = load_model(folder, config)
    return write_result(recipe, folder, compressed, install_learned(compressed, learned), replaced)


def _checked_method(recipe: Recipe) -> Any:
    """The config of the method. Raises `InputError` for a bad option, and for what does not go with the kind."""
    method = method_from_name(recipe.method, recipe.options, TASK_METHOD_TYPES)
    check_size_options(method, recipe.width, recipe.round_to, recipe.budget)
    if recipe.keep_ratio is None:
        raise InputError(f"`keep_ratio` must be given for {recipe.method}, got none")
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
