"""Which MLPs are cut, and to which size; free of torch, so that the command line and the library share it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mlpfusion.checks import real_number, whole_number
from mlpfusion.errors import InputError, shown
from mlpfusion.options.fields import option

# A number of a layer, short enough to be one, and a range of two.
_NUMBER = "[0-9]{1,9}"
LAYER_RANGE = f"{_NUMBER}(-{_NUMBER})?"
LAYERS_FORM = "`layers` must be `all`, `last:N`, `first:N`, a range like `4-11` or a list like `0,3,5`"


@dataclass(frozen=True)
class Selection:
    """Layers and at most one size: `keep_ratio`, `width` or `budget`.

    `layers` selects in each stack of a model with an encoder and a decoder. `keep_ratio` 0.25 keeps a quarter of the
    neurons, rounded to a multiple of `round_to`; `width` is the number of neurons, taken as given; `budget` is the
    share of the whole model to keep, such as `60%` or `60%flops`. Raises `InputError`, naming the field, for anything
    wrong that shows without a model.

    >>> Selection(layers="last:8", keep_ratio=0.25).layers
    'last:8'
    """

    layers: str = option("all", "all, last:8, first:2, 4-11 or 0,3,5; in each stack by itself.")
    keep_ratio: float | None = option(None, "Share of the neurons to keep, e.g. 0.25; or --width, or --budget.")
    width: int | None = option(None, "Neurons to keep, instead of --keep-ratio.")
    budget: str | None = option(
        None, "Share of the whole model to keep instead, spread: 60% or 60%flops.", metavar="SHARE"
    )
    round_to: int = option(1, "Round the widths of --keep-ratio and --budget to a multiple of this.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "round_to", whole_number("round_to", self.round_to, 1))
        if self.keep_ratio is not None:
            object.__setattr__(self, "keep_ratio", _checked_ratio(self.keep_ratio))
        if self.width is not None:
            object.__setattr__(self, "width", whole_number("width", self.width))
        check_layers_form(self.layers)
        sizes = self._sizes()
        if len(sizes) > 1:
            names = _listed([f"`{name}`" for name in sizes])
            got = _listed([shown(size) for size in sizes.values()])
            raise InputError(f"only one of {names} must be given, got {got}")
        if self.width is not None and self.round_to != 1:
            raise InputError(f"`round_to` must be left out with `width`, which is taken as it is, got {self.round_to}")

    def check_size_given(self) -> None:
        """Raises `InputError` if no size is given. `Selection()` has none, so that other faults are named first."""
        if not self._sizes():
            raise InputError("give `keep_ratio=0.25` to keep a quarter of the neurons (or `width`, or `budget`)")

    def _sizes(self) -> dict[str, float | str]:
        sizes = {"keep_ratio": self.keep_ratio, "width": self.width, "budget": self.budget}
        return {name: size for name, size in sizes.items() if size is not None}


def check_layers_form(layers: str) -> None:
    """Raises `InputError` unless `layers` has a form of layers, whatever their number."""
    if not re.fullmatch(rf"all|(first|last):{_NUMBER}|{LAYER_RANGE}(\s*,\s*{LAYER_RANGE})*", str(layers).strip()):
        raise InputError(f"{LAYERS_FORM}, got {shown(layers)}")


def _checked_ratio(keep_ratio: float) -> float:
    ratio = real_number("keep_ratio", keep_ratio)
    if not 0 < ratio <= 1:
        raise InputError(f"`keep_ratio` must be above 0 and at most 1, got {ratio}")
    return ratio


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
