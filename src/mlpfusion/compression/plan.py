"""Which sites get which width."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlpfusion.errors import InputError, shown
from mlpfusion.sites.sites import Site

# A number of a layer, short enough to be one, and a range of two.
_NUMBER = "[0-9]{1,9}"
_RANGE = f"{_NUMBER}(-{_NUMBER})?"
LAYERS_FORM = "`layers` must be `all`, `last:N`, `first:N`, a range like `4-11` or a list like `0,3,5`"


@dataclass(frozen=True)
class Plan:
    """The sites to compress and the width of each, in the order of the model, and the ratio if one was asked for."""

    entries: tuple[tuple[Site, int], ...]
    keep_ratio: float | None = None

    @property
    def sites(self) -> list[Site]:
        """The sites to compress, in the order of the model."""
        return [site for site, _ in self.entries]


def make_plan(
    sites: Sequence[Site],
    *,
    layers: str = "all",
    keep_ratio: float | None = None,
    width: int | None = None,
    round_to: int = 1,
) -> Plan:
    """The plan for `sites`. In a model with an encoder and a decoder, `layers` selects in each stack by itself.

    Exactly one of `keep_ratio` (0.25 keeps a quarter of the neurons) and `width` (neurons) must be given;
    `keep_ratio` rounds to the nearest multiple of `round_to`. Raises `InputError` naming the field, its range and
    the value, also where rounding would leave a whole MLP of a cut.
    """
    check_one_size({"keep_ratio": keep_ratio, "width": width})
    check_round_to(round_to)
    if width is not None and round_to != 1:
        raise InputError(f"`round_to` must be left out with `width`, which is taken as it is, got {round_to}")
    chosen = choose_sites(sites, layers)
    check_step_fits(chosen, round_to)
    return Plan(tuple((site, _site_width(site, keep_ratio, width, round_to)) for site in chosen), keep_ratio)


def check_one_size(given: Mapping[str, Any]) -> None:
    """Raises `InputError` unless exactly one of the sizes in `given`, by name, is not None."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        others = "".join(f", or `{name}`" for name in given if name != "keep_ratio").removeprefix(", ")
        raise InputError(f"give `keep_ratio=0.25` to keep a quarter of the neurons ({others})")
    if len(chosen) > 1:
        names = _listed([f"`{name}`" for name in chosen])
        raise InputError(f"only one of {names} must be given, got {_listed([shown(one) for one in chosen.values()])}")


def check_round_to(round_to: int) -> None:
    """Raises `InputError` for a step of widths below 1."""
    if round_to < 1:
        raise InputError(f"`round_to` must be at least 1, got {round_to}")


def check_step_fits(sites: Sequence[Site], round_to: int) -> None:
    """Raises `InputError` if an MLP has fewer neurons than a step of widths: nothing of it could be cut."""
    for site in sites:
        if round_to > site.intermediate_size:
            allowed = f"at most {site.intermediate_size}, the width of {site.path}"
            raise InputError(f"`round_to` must be {allowed}, got {shown(round_to)}")


def choose_sites(sites: Sequence[Site], layers: str) -> list[Site]:
    """The sites that `layers` selects in each stack. Raises `InputError` as `parse_layers` does."""
    stacks = dict.fromkeys(site.stack.layer for site in sites)
    chosen = []
    for stack in stacks:
        members = [site for site in sites if site.stack.layer == stack]
        indices = set(parse_layers(layers, len(members)))
        chosen += [site for site in members if site.layer in indices]
    return chosen


def check_layers_form(layers: str) -> None:
    """Raises `InputError` unless `layers` is of a form that may stand for layers, whatever their number."""
    if not re.fullmatch(rf"all|(first|last):{_NUMBER}|{_RANGE}(\s*,\s*{_RANGE})*", str(layers).strip()):
        raise InputError(f"{LAYERS_FORM}, got {shown(layers)}")


def parse_layers(layers: str, num_layers: int) -> tuple[int, ...]:
    """The layer numbers that `layers` stands for in a stack of `num_layers` layers, ascending."""
    check_layers_form(layers)
    text = str(layers).strip()
    if text == "all":
        return tuple(range(num_layers))
    if match := re.fullmatch(r"(first|last):([0-9]+)", text):
        count = int(match[2])
        if not 1 <= count <= num_layers:
            raise InputError(f"`layers={match[1]}:N` must have N between 1 and {num_layers}, got {count}")
        return tuple(range(count)) if match[1] == "first" else tuple(range(num_layers - count, num_layers))
    return _parse_list(text, num_layers)


def _parse_list(text: str, num_layers: int) -> tuple[int, ...]:
    indices: set[int] = set()
    for item in text.split(","):
        first, _, last = item.strip().partition("-")
        start, stop = int(first), int(last or first)
        if start > stop:
            raise InputError(f"a range in `layers` must ascend, got {item.strip()}")
        if stop >= num_layers:
            raise InputError(f"`layers` must be between 0 and {num_layers - 1}, got {stop}")
        indices.update(range(start, stop + 1))
    return tuple(sorted(indices))


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _site_width(site: Site, keep_ratio: float | None, width: int | None, round_to: int) -> int:
    if keep_ratio is not None:
        if not 0 < keep_ratio <= 1:
            raise InputError(f"`keep_ratio` must be above 0 and at most 1, got {keep_ratio}")
        rounded = max(round_to * round(keep_ratio * site.intermediate_size / round_to), round_to)
        if round_to > 1 and keep_ratio < 1 and rounded >= site.intermediate_size:
            got = f"{keep_ratio:g} of {site.intermediate_size} neurons is {rounded} in steps of {round_to}"
            raise InputError(f"`round_to` must be small enough that {site.path} gets narrower: {got}")
        return min(rounded, site.intermediate_size)
    assert width is not None
    if not 1 <= width <= site.intermediate_size:
        raise InputError(f"`width` must be between 1 and {site.intermediate_size} at {site.path}, got {width}")
    return width
