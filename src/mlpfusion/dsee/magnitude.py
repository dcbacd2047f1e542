"""Magnitude pruning: the smallest weights of a model become zeros that stay."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.checkpoint.read import is_pooler
from mlpfusion.checks import check_that
from mlpfusion.errors import InputError
from mlpfusion.kinds.kind import replace_module
from mlpfusion.kinds.masked import MASKED_TYPES, as_type
from mlpfusion.methods.masking import smallest
from mlpfusion.sites.mixtures.routers import router_parameters
from mlpfusion.sites.sites import base_model, base_prefix
from mlpfusion.sites.weights import linear_weight


@dataclass(frozen=True)
class Pruning:
    """Share `ratio` of zeros in a fine-tuned model, reached in `rounds` with training after each.

    One round is one-shot magnitude pruning (OMP), several are the iterative one (IMP): round k leaves the share
    (1 - `ratio`)^(k / `rounds`) of the weights, so each takes the same part of what is left. Nothing is rewound: a
    round trains on from the weights of the one before, with a new optimizer. (`LTH` rewinds.)
    """

    ratio: float
    rounds: int = 1

    def __post_init__(self) -> None:
        check_that(0 < self.ratio < 1, "zeros ratio", "above 0 and below 1", self.ratio)
        check_that(self.rounds >= 1, "zeros rounds", "a whole number of at least 1", self.rounds)

    def shares(self) -> tuple[float, ...]:
        """Returns the share of zeros of every round.

        >>> Pruning(0.75, rounds=2).shares()
        (0.5, 0.75)
        """
        earlier = (1 - (1 - self.ratio) ** (number / self.rounds) for number in range(1, self.rounds))
        return (*earlier, self.ratio)


def zero_smallest(model: PreTrainedModel, share: float) -> int:
    """Zeroes weights of a model in place, for good; returns how many are zero.

    Of the N weights of all maps of `layer_maps` the round(`share` N) smallest, ranked together; of equal ones the
    first. Further training leaves all zeros of these maps as they are. Raises `InputError` as `check_prunable` does.
    """
    check_prunable(model)
    maps = layer_maps(model)
    weights = [linear_weight(linear) for linear in maps.values()]
    masks = smallest([weight.abs() for weight in weights], round(share * sum(weight.numel() for weight in weights)))
    for weight, mask in zip(weights, masks, strict=True):
        weight.masked_fill_(mask, 0.0)
    for path, linear in maps.items():
        if type(linear) in MASKED_TYPES:  # not after the first round
            replace_module(model, path, as_type(linear, MASKED_TYPES[type(linear)]))
    return sum(weight.numel() - int(weight.count_nonzero()) for weight in weights)


def check_prunable(model: PreTrainedModel) -> None:
    """Raises `InputError` for a model without linear maps in its layers, or with one of another class.

    The model may be on the meta device.
    """
    maps = layer_maps(model)
    known = {*MASKED_TYPES, *MASKED_TYPES.values()}
    strange = [f"{type(linear).__name__} at {path}" for path, linear in maps.items() if type(linear) not in known]
    if strange or not maps:
        got = strange[0] if strange else f"{type(model).__name__} with none"
        raise InputError(f"`model` must have layers of Linear or Conv1D to be pruned, got {got}")


def layer_maps(model: PreTrainedModel) -> dict[str, Any]:
    """Returns the linear maps of the layers and the pooler by path from `model`.

    Heads, embeddings and routers are left out.
    """
    base, prefix = base_model(model), base_prefix(model)
    lists = tuple(f"{path}." for path, module in base.named_modules() if isinstance(module, nn.ModuleList))
    routers = {id(parameter) for parameter in router_parameters(base).values()}
    return {
        f"{prefix}{path}": module
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (path.startswith(lists) or is_pooler(path))
        and id(module.weight) not in routers
    }
