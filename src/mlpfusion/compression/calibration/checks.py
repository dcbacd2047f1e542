"""What a calibration must be, for the method and for the model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from mlpfusion.batch import Batch
from mlpfusion.errors import REFUSALS, InputError, one_line
from mlpfusion.methods.names import method_name
from mlpfusion.methods.needs import needs_batches
from mlpfusion.methods.table import METHODS
from mlpfusion.sites.parts import vocabulary_size
from mlpfusion.sites.recording import eval_mode
from mlpfusion.sites.sites import base_model


def check_calibration(method: Any, *, given: bool, sequential: bool) -> None:
    """Raises `InputError` unless a calibration is given for a method that takes one, and for no other.

    Also for `sequential` with a method that has nothing to pass on, or needs all blocks at once.
    """
    name = method_name(type(method))
    if needs_batches(method):
        if not given:
            raise InputError(f"`calibration` must be given for {name}, or `data_free`, got none")
        if sequential:
            check_sequential(method)
        return
    if given:
        raise InputError(f"`calibration` must be left out for {name}, which takes none")
    if sequential:
        raise InputError(f"`sequential` must be left out for {name}, which has no calibration data to pass on")


def check_sequential(method: Any) -> None:
    """Raises `InputError` for a calibrated method that cannot compress the blocks one after the other."""
    if needs_batches(method) and METHODS[type(method)].ranked_together:
        name = method_name(type(method))
        raise InputError(f"`sequential` must be left out for {name}, which ranks the neurons of all blocks together")


def check_ids(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Raises `InputError` for token ids that the model has not, and for masks of another shape."""
    size = vocabulary_size(base_model(model))
    for number, batch in enumerate(batches):
        for name in ("input_ids", "decoder_input_ids"):
            ids, mask = batch.get(name), batch.get(name.replace("input_ids", "attention_mask"))
            if ids is not None and mask is not None and mask.shape != ids.shape:
                got = f"{tuple(mask.shape)} for {tuple(ids.shape)} in batch {number}"
                raise InputError(f"`calibration` must have a mask of the shape of its {name}, got {got}")
            if ids is None or size is None or not ids.numel():
                continue
            if ids.min() < 0 or ids.max() >= size:
                got = f"{int(ids.min())} to {int(ids.max())} for {name} in batch {number}"
                raise InputError(f"`calibration` must have token ids from 0 to {size - 1}, got {got}")


@torch.no_grad()
def check_taken(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Raises `InputError` for batches unfit for the model.

    Checked are token ids, the shapes of masks, and a run of the model on one sample: the first of the longest batch,
    once for every set of tensor names.
    """
    check_ids(model, batches)
    base, longest = base_model(model), {}
    for number, batch in enumerate(batches):
        longest[tuple(batch)] = max(longest.get(tuple(batch), (0, 0)), (_length(batch), number))
    for _, number in longest.values():
        first = {name: value[:1].to(model.device) for name, value in batches[number].items() if name != "labels"}
        try:
            with eval_mode(model):
                base(**first)
        except REFUSALS as error:
            wanted = f"`calibration` must hold batches that a {type(model).__name__} takes"
            raise InputError(f"{wanted}, batch {number} is none: {one_line(error)}") from error


def _length(batch: Batch) -> int:
    return max((value.shape[1] for value in batch.values() if value.ndim > 1), default=0)


def check_some(batches: Sequence[Batch]) -> None:
    """Raises `InputError` if there is no batch."""
    if not len(batches):
        raise InputError("`calibration` must hold at least one batch, got none")
