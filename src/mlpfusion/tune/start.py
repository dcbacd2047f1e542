"""The model that a run of training starts from: the checkpoint with the head of the task, compressed in memory."""

import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.compression.compress import compress
from mlpfusion.data.task import Task
from mlpfusion.data.task_model import load_for_task
from mlpfusion.errors import DegenerateClusteringWarning
from mlpfusion.options.selection import Selection
from mlpfusion.record import Record
from mlpfusion.sites.table import Architecture


def compressed_start(
    source: Checkpoint,
    task: Task,
    method: Any,
    selection: Selection,
    *,
    seed: int,
    architecture: Architecture,
    calibration: Sequence[Batch] | None,
    sequential: bool = False,
) -> tuple[PreTrainedModel, Record]:
    """The model of `source` with the head for `task`, in fp32 on the CPU and in eval mode, and what `compress` did.

    A head that the checkpoint lacks is drawn from `seed` before the model is compressed, so it is that of the full
    model. Raises `InputError` as `compress`.
    """
    model = load_for_task(source, task, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateClusteringWarning)
        record = compress(
            model,
            method,
            layers=selection.layers,
            keep_ratio=selection.keep_ratio,
            seed=seed,
            architecture=architecture,
            calibration=calibration,
            sequential=sequential,
        )
    return model.eval(), record


def trained_parameters(record: Record) -> int:
    """The parameters of a compressed model that no mask holds at zero."""
    return record.compressed.parameters - sum(site.parameters - site.nonzero_parameters for site in record.sites)
