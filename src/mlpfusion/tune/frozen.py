"""Parameters that a run of training leaves as they are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.sites.mixtures.routers import router_parameters


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Keeps `parameters` out of training while open; restores their flags on exit."""
    flags = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def frozen_routers(model: PreTrainedModel, *, freeze: bool) -> dict[str, nn.Parameter]:
    """What `freeze_router` keeps out of training, by name. Raises `InputError` for a model without a mixture."""
    routers = router_parameters(model) if freeze else {}
    if freeze and not routers:
        name = model.config.model_type
        raise InputError(f"`freeze_router` must be left out for {name}, which has no mixture of experts")
    return routers
