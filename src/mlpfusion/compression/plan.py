"""Chooses the sites and their widths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from mlpfusion.errors import InputError, shown
from mlpfusion.options.selection import Selection, check_layers_form
from mlpfusion.sites.sites import Site


@dataclass(frozen=True)
class Plan:
    """The sites to compress with their widths, in the order of the model; `keep_ratio` where it was given.

    A method that narrows and ranks the blocks together keeps the sum of the widths only, in steps of `round_to`.
    """

    entries: tuple[tuple[Site, int], ...]
    keep_ratio: float | None = None
    round_to: int = 1

    @property
    def sites(self) -> list[Site]:
        """The sites to compress, in the order of the model."""
        return [site for site, _ in self.entries]


def make_plan(sites: Sequence[Site], selection: Selection) -> Plan:
    """Returns the plan for `sites`; a budget is spread by `spread_budget` instead.

    In a model with an encoder and a decoder, the layers are selected in each stack. Raises `InputError` naming the
    field, its range and the value, also where rounding would leave a whole MLP of a cut.
    """
    selection.check_size_given()
    assert selection.budget is None
    chosen = choose_sites(sites, selection.layers)
    check_step_fits(chosen, selection.round_to)
    entries = tuple((site, _site_width(site, selection)) for site in chosen)
    return Plan(entries, selection.keep_ratio, selection.round_to)


def check_round_to(round_to: int) -> None:
    """Raises `InputError` for a step of widths below 1."""
    if round_to < 1:
        raise InputError(f"`round_to` must be at least 1, got {round_to}")


def check_step_fits(sites: Sequence[Site], round_to: int) -> None:
    """Raises `InputError` for a step of widths above the width of an MLP."""
    for site in sites:
        if round_to > site.intermediate_size:
            allowed = f"at most {site.intermediate_size}, the width of {site.path}"
            raise InputError(f"`round_to` must be {allowed}, got {shown(round_to)}")


def choose_sites(sites: Sequence[Site], layers: str) -> list[Site]:
    """Returns the sites of `layers`, selected in each stack; `first` and `last` count the layers that have an MLP.

    Raises `InputError` for layers out of range, and if none of them has one.
    """
    stacks = dict.fromkeys(site.stack.layer for site in sites)
    chosen = []
    for stack in stacks:
        members = [site for site in sites if site.stack.layer == stack]
        numbers = list(dict.fromkeys(site.layer for site in members))
        if re.search("all|first|last", str(layers)):
            named = {numbers[index] for index in parse_layers(layers, len(numbers))}
        else:
            named = set(parse_layers(layers, numbers[-1] + 1))
        chosen += [site for site in members if site.layer in named]
    if not chosen:
        having = ", ".join(map(str, dict.fromkeys(site.layer for site in sites)))
        raise InputError(f"`layers` must name a layer with an MLP, which {having} have, got {shown(layers)}")
    return chosen


def parse_layers(layers: str, num_layers: int) -> tuple[int, ...]:
    """Returns the layer numbers of `layers` in a stack of `num_layers` layers, ascending."""
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


def width_step(site: Site, round_to: int = 1) -> int:
    """The step of the widths of a site, a multiple of `round_to`.

    Of experts in one tensor one of 8 too: torch multiplies many at once, in rows of 16 bytes.
    """
    return lcm(round_to, 1 if site.stack.layout is None else 8)


def _site_width(site: Site, selection: Selection) -> int:
    if selection.width is not None:
        if not 1 <= selection.width <= site.intermediate_size:
            allowed = f"between 1 and {site.intermediate_size} at {site.path}"
            raise InputError(f"`width` must be {allowed}, got {selection.width}")
        if selection.width % width_step(site):
            allowed = f"a multiple of {width_step(site)} for the experts at {site.holder}, whose kernels need it"
            raise InputError(f"`width` must be {allowed}, got {selection.width}")
        return selection.width
    assert selection.keep_ratio is not None
    keep_ratio, round_to = selection.keep_ratio, width_step(site, selection.round_to)
    rounded = max(round_to * round(keep_ratio * site.intermediate_size / round_to), round_to)
    if round_to > 1 and keep_ratio < 1 and rounded >= site.intermediate_size:
        got = f"{keep_ratio:g} of {site.intermediate_size} neurons is {rounded} in steps of {round_to}"
        raise InputError(f"`round_to` must be small enough that {site.path} gets narrower: {got}")
    return min(rounded, site.intermediate_size)
