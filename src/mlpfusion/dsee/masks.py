"""Which weights of a model under an adapter are set to zero."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.adapter.layer import DseeLayer, dense_weight
from mlpfusion.dsee.criteria import update_scores
from mlpfusion.dsee.magnitude import layer_maps
from mlpfusion.dsee.record import MaskedRows
from mlpfusion.dsee.update import part_rows
from mlpfusion.errors import InputError
from mlpfusion.methods.masking import smallest
from mlpfusion.options.adapters.sparsity import Sparsity
from mlpfusion.sites.sites import base_model, base_prefix


@dataclass(frozen=True)
class Rows:
    """The outputs `start` to `stop` of the linear map at `path`; `is_updated`: the adapter adds to them."""

    path: str
    start: int
    stop: int
    is_updated: bool

    def of(self, matrix: Tensor) -> Tensor:
        """Returns these rows of a matrix in the layout of `nn.Linear`, a view."""
        return matrix[self.start : self.stop]


def set_zeros(adapted: Any, sparsity: Sparsity, adapter_name: str = "default") -> list[MaskedRows]:
    """Zeroes weights under an adapter, in place; returns what each matrix lost.

    `adapted` is a `PeftModel`. Exactly round(ratio N) of the N entries of all maps under the adapter, and of all
    others, are zeroed; of equal scores the first. Raises `InputError` as `maskable_rows` does.
    """
    found = maskable_rows(adapted, sparsity, adapter_name)
    masks: dict[Rows, Bool[Tensor, "outputs inputs"]] = {}
    for is_updated, ratio in ((True, sparsity.updated_ratio), (False, sparsity.other_ratio)):
        pool = [rows for rows in found if rows.is_updated == is_updated]
        scores = [_scores(adapted, rows, sparsity, adapter_name) for rows in pool]
        if scores:
            number = round(ratio * sum(score.numel() for score in scores))
            masks |= dict(zip(pool, smallest(scores, number), strict=True))
    lost = []
    for rows, mask in masks.items():
        weight = rows.of(_weight(adapted, rows.path))
        weight.masked_fill_(mask, 0.0)
        zeros = weight.numel() - int(weight.count_nonzero())
        lost.append(
            MaskedRows(rows.path, rows.start, rows.stop, rows.is_updated, weight.numel(), int(mask.sum()), zeros)
        )
    return lost


def maskable_rows(adapted: Any, sparsity: Sparsity, adapter_name: str = "default") -> list[Rows]:
    """Returns the outputs of all maps under the adapter, and of all other maps of layers and pooler.

    Heads, embeddings and routers are left out. Raises `InputError` for a share of the others where there are none.
    """
    model: PreTrainedModel = adapted.get_base_model()
    base, prefix, plain = base_model(model), base_prefix(model), layer_maps(model)
    inside: tuple[str, ...] = ()
    found: list[Rows] = []
    for name, module in base.named_modules():
        path = f"{prefix}{name}"
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{path}.")
            if isinstance(module.get_base_layer(), nn.Linear | Conv1D):
                found += _rows_under(path, module, adapter_name)
        elif path in plain and not path.startswith(inside):
            found.append(Rows(path, 0, len(dense_weight(module)), is_updated=False))
    if sparsity.other_ratio and all(rows.is_updated for rows in found):
        raise InputError(
            f"`other_ratio` must be 0 for an adapter on all linear maps of the layers, got {sparsity.other_ratio}"
        )
    return found


def _rows_under(path: str, layer: Any, adapter_name: str) -> list[Rows]:
    """The rows of a map under an adapter, part by part."""
    outputs = len(dense_weight(layer.get_base_layer()))
    parts = layer.update_of(adapter_name).parts if isinstance(layer, DseeLayer) else (True,)
    every = part_rows(outputs, [True] * len(parts))
    return [Rows(path, rows.start, rows.stop, covered) for rows, covered in zip(every, parts, strict=True)]


def _scores(adapted: Any, rows: Rows, sparsity: Sparsity, adapter_name: str) -> Tensor:
    if not rows.is_updated:
        return rows.of(_weight(adapted, rows.path)).abs()
    layer = adapted.get_base_model().get_submodule(rows.path)
    return rows.of(update_scores(layer, sparsity.criterion, adapter_name, sparsity.seed, rows.path))


def _weight(adapted: Any, path: str) -> Tensor:
    module = adapted.get_base_model().get_submodule(path)
    return dense_weight(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)
