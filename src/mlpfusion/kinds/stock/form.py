"""Whether a model of plain blocks is one that its class builds from a config, and with which entries."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from mlpfusion.errors import InputError
from mlpfusion.heads.key import NO_STOCK_FORM, heads_key
from mlpfusion.kinds.stock.entries import base_part, write_entries
from mlpfusion.kinds.stock.widths import set_widths
from mlpfusion.sites.sites import find_sites
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.width_keys import saved_shapes, stock_shapes


@dataclass(frozen=True)
class StockForm:
    """The widths that the config of a stock model must hold, by their names there; or the reason why there is none.

    `is_uneven` where the reason is layers of different widths; not `is_foldable` where blocks are not linear maps even
    after folding, which no other engine holds.
    """

    widths: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    is_uneven: bool = False
    is_foldable: bool = True


def stock_after_fold(empty: PreTrainedModel, row: Architecture, widths: Mapping[str, int]) -> StockForm:
    """The stock form of a model whose blocks have `widths`, by their holders, once it is folded.

    `empty` is the original on the meta device; it is changed.
    """
    set_widths(empty, row, widths)
    return stock_form(empty, row)


def stock_form(model: PreTrainedModel, row: Architecture) -> StockForm:
    """The stock form of `model`, whose blocks have neither scales nor factors.

    The class of the model is built on the meta device; all names and shapes that it saves must be those of `model`.
    There is none for a model that lost heads.
    """
    if heads_key(model.config) is not None:
        return StockForm(reason=NO_STOCK_FORM)
    difference = _difference(model, {})
    if difference is None:
        return StockForm()
    unknown, widths = None, dict[str, set[int]]()
    for site in find_sites(model, row):
        if site.stack.width_key is None:
            unknown = unknown or site.stack.layer
        else:
            widths.setdefault(site.stack.width_key, set()).add(site.intermediate_size)
    if any(len(found) > 1 for found in widths.values()):
        return StockForm(reason="the layers have different widths", is_uneven=True)
    wanted = {name: found.pop() for name, found in widths.items()}
    # A width that no entry is known to hold may follow from the others: a shared expert is often several times as wide
    # as an expert.
    difference = _difference(model, wanted) if wanted else difference
    if difference is not None and unknown is not None:
        difference = f"no entry of the config is known to hold the width of {unknown}"
    return StockForm(wanted, difference)


def _difference(model: PreTrainedModel, widths: Mapping[str, int]) -> str | None:
    """The reason why `model` is not what its class builds from its config with these widths, None if it is."""
    config = copy.deepcopy(model.config)
    write_entries(config, base_part(model), widths, None)
    try:
        built = stock_shapes(type(model), config)
    except InputError as error:
        return str(error)
    shapes = saved_shapes(model)
    if shapes == built:
        return None
    name = min(name for name in {*shapes, *built} if shapes.get(name) != built.get(name))
    found, made = shapes.get(name, "no place"), built.get(name, "no place")
    return f"{type(model).__name__} does not build these widths from its config ({name} has {found}, it makes {made})"
