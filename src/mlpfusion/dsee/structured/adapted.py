"""A model under an adapter of DSEE, in memory, loses the heads of the lowest updates."""

from typing import Any

from mlpfusion.dsee.structured.adapter import lay, lift
from mlpfusion.dsee.structured.choice import HeadChoice
from mlpfusion.dsee.structured.lowest import check_scored, slice_lowest
from mlpfusion.heads.sites import find_heads
from mlpfusion.heads.slicing import check_whole


def slice_adapted(adapted: Any, choice: HeadChoice) -> Any:
    """Returns the model without these heads, under its adapter without them: a `PeftModel` that trains.

    The `PeftModel` given is taken apart. Raises `InputError` as `slice_lowest` does.
    """
    model, adapter = lift(adapted)
    left = slice_lowest(model, choice, adapter)
    assert left.adapter is not None
    return lay(model, left.adapter)


def check_slice(adapted: Any, choice: HeadChoice, name: str) -> None:
    """Raises `InputError` for a model, an adapter or a number of heads, called `name`, that cannot be.

    The `PeftModel` may be on the meta device. It is taken apart.
    """
    model, adapter = lift(adapted)
    check_whole(model)
    sites = find_heads(model)
    choice.check(sites, name)
    check_scored(sites, adapter)
