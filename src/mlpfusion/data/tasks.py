"""The tasks by name, and the kinds of tasks."""

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mlpfusion.data.encode import EncodedTask
from mlpfusion.data.generation.kind import Generation
from mlpfusion.data.generation.task import GENERATION
from mlpfusion.data.labelled.glue import GLUE
from mlpfusion.data.labelled.kind import Labelled
from mlpfusion.data.language.kind import LanguageModelling
from mlpfusion.data.language.task import LANGUAGE
from mlpfusion.data.task import ALL, Task, TaskData
from mlpfusion.data.task_kind import TaskKind
from mlpfusion.errors import InputError
from mlpfusion.options.task import TaskOptions

KINDS: dict[str, TaskKind] = {
    "classification": Labelled(),
    "regression": Labelled(),
    "language-modelling": LanguageModelling(),
    "generation": Generation(),
}
TASKS: dict[str, Task] = {**GLUE, **LANGUAGE, **GENERATION}
LOWER_IS_BETTER = ("perplexity", "loss", "ter")  # metrics


def find_task(name: str) -> Task:
    """Finds a task by name. Raises `InputError` for an unknown name.

    >>> find_task("rte").kind
    'classification'
    """
    if name not in TASKS:
        raise InputError(f"`task` must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]


def kind_of_task(task: Task) -> TaskKind:
    """What all tasks of the kind of `task` have in common.

    >>> kind_of_task(find_task("wikitext2")).choices(find_task("wikitext2"))
    ('perplexity', 'loss')
    """
    return KINDS[task.kind]


def new_tokens(name: str | None) -> tuple[str, ...]:
    """Special tokens that a model needs for the task `name`; none for labelled files of your own.

    >>> len(new_tokens("webnlg")), new_tokens("rte")
    (16, ())
    """
    if name is None:
        return ()
    task = find_task(name)
    return kind_of_task(task).new_tokens(task)


def check_new_tokens(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Raises `InputError` for a tokenizer without the special tokens of the task `name`."""
    known = tokenizer.get_vocab()
    missing = [token for token in new_tokens(name) if token not in known]
    if missing:
        raise InputError(f"`model` must have the special tokens of {name}, which `tune` adds, got none as {missing[0]}")


def load_task(name: str) -> TaskData[Any, Any]:
    """Loads a task with its own data, from the folder in MLPFUSION_DATA, else the Hub.

    Without the variable, a checkout of the source looks into `../shared/data`; an empty variable
    means the Hub. Raises `InputError` for an unknown task, a missing split or column, an empty
    split, and a label out of range.
    """
    task = find_task(name)
    return kind_of_task(task).load(task, TaskOptions(task=name), None, ALL)


def encode_task(
    data: TaskData[Any, Any],
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig | None = None,
    *,
    max_length: int | None = None,
) -> EncodedTask:
    """Tokenizes every split of `data`, for a model of `config`.

    What `max_length` means, its default and what is refused is said by the kind of the task: texts
    are cut, or packed into windows.
    """
    return kind_of_task(data.task).encode(data, tokenizer, config, max_length)


def check_metric(task: Task, name: str | None) -> str:
    """Returns `name`, or for None the usual score that epochs of `task` are chosen by.

    Raises `InputError` for one that they are not chosen by.

    >>> check_metric(find_task("mrpc"), None)
    'accuracy'
    """
    choices = kind_of_task(task).choices(task)
    if name is not None and name not in choices:
        raise InputError(f"`metric_for_best_model` must be one of {', '.join(choices)}, got {name!r}")
    return name or choices[0]


def merit(metric: str, score: float) -> float:
    """The score, or its negative: the higher, the better.

    >>> merit("accuracy", 0.9), merit("perplexity", 20.0)
    (0.9, -20.0)
    """
    return -score if metric in LOWER_IS_BETTER else score
