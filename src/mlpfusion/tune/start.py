"""The model that a run of training starts from: the checkpoint with the head of the task, compressed in memory."""

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import DataCollatorWithPadding, PreTrainedConfig, PreTrainedModel

from mlpfusion.compression import compress
from mlpfusion.errors import DegenerateClusteringWarning
from mlpfusion.record import Record
from mlpfusion.tasks.calibration_texts import order_by_length, with_decoder_inputs
from mlpfusion.tasks.encode import EncodedExamples
from mlpfusion.tasks.glue import Task
from mlpfusion.traces import Batch
from mlpfusion.tune.source import Source, load_for_task

_BATCH_SIZE = 32


def unlabelled_batches(examples: EncodedExamples, collate: DataCollatorWithPadding) -> list[Batch]:
    """The inputs of `examples`, without their labels, in batches of 32 in the order of their length."""
    order = sorted(range(len(examples)), key=lambda index: examples.lengths[index])
    rows = [{name: value for name, value in examples[index].items() if name != "labels"} for index in order]
    return [dict(collate(rows[start : start + _BATCH_SIZE])) for start in range(0, len(rows), _BATCH_SIZE)]


def calibration_batches(
    examples: EncodedExamples, collate: DataCollatorWithPadding, config: PreTrainedConfig, num_samples: int, seed: int
) -> list[Batch]:
    """`num_samples` of `examples`, unlabelled, by `order_by_length` on tokens; as inputs of a model of this config."""
    drawn = order_by_length(examples.lengths, seed)[:num_samples]
    return with_decoder_inputs(unlabelled_batches(examples.subset(drawn), collate), config)


def compressed_start(
    source: Source, task: Task, method: Any, seed: int, selection: dict[str, Any], calibration: Sequence[Batch] | None
) -> tuple[PreTrainedModel, Record]:
    """The model of `source` with the head for `task`, in fp32 on the CPU and in eval mode, and what `compress` did.

    A head that the checkpoint lacks is drawn from `seed` before the model is compressed, so it is that of the full
    model. `selection` are the arguments of `compress` that choose layers and sizes. Raises `InputError` as `compress`.
    """
    model = load_for_task(source, task, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusteringWarning)
        record = compress(model, method, seed=seed, calibration=calibration, **selection)
    return model.eval(), record


def trained_parameters(record: Record) -> int:
    """The parameters of a compressed model that no mask holds at zero."""
    return record.compressed.parameters - sum(site.parameters - site.nonzero_parameters for site in record.sites)
