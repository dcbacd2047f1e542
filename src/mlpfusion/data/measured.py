"""Texts of a task to measure a model on, or to calibrate on, without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.data.chosen import chosen_data
from mlpfusion.data.task import REPORTED, TRAIN
from mlpfusion.data.tasks import check_new_tokens, encode_task, kind_of_task
from mlpfusion.data.unlabelled.examples import CalibrationExamples, model_batches
from mlpfusion.options.task import TaskOptions


@dataclass(frozen=True)
class Measured:
    """Batches of inputs; `source` names the task, the split and the files, `num_texts` counts the examples."""

    batches: Sequence[Batch]
    source: str
    num_texts: int


def task_texts(checkpoint: Checkpoint, options: TaskOptions, validation: str | None, max_samples: int) -> Measured:
    """The first examples of the first reported split.

    What an example is says the kind of the task: a text or pair, a window, or a source with its text. Raises
    `InputError` as the loaders and `encode_task` do, and for a tokenizer without the special tokens of the task.
    """
    check_new_tokens(checkpoint.tokenizer, options.task)
    data = chosen_data(options, validation, REPORTED)
    name, split = next(iter(data.evaluation.items()))
    if kind_of_task(data.task).row_is_example:
        split = split.subset(range(len(split))[:max_samples])
    config = checkpoint.training_config
    encoded = encode_task(
        replace(data, evaluation={name: split}), checkpoint.tokenizer, config, max_length=options.max_length
    )
    examples = encoded.evaluation[name]
    examples = examples.subset(range(len(examples))[:max_samples])
    batches = model_batches(examples, encoded.collate, config)
    return Measured(batches, f"{data.task.name} {name}: {data.source}", len(examples))


def calibration_examples(checkpoint: Checkpoint, options: TaskOptions, num_samples: int) -> CalibrationExamples:
    """The training split to calibrate on. Raises `InputError` as `task_texts` does."""
    check_new_tokens(checkpoint.tokenizer, options.task)
    data, config = chosen_data(options, None, TRAIN), checkpoint.training_config
    encoded = encode_task(data, checkpoint.tokenizer, config, max_length=options.max_length)
    return CalibrationExamples(
        encoded.train, encoded.collate, config, num_samples, f"{data.task.name} train: {data.source}"
    )
