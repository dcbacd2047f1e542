import pytest
from mixtures import mixture_model

from mlpfusion.compression.plan import choose_sites, make_plan, parse_layers
from mlpfusion.errors import InputError
from mlpfusion.options.selection import Selection
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.sites import Site, find_sites
from mlpfusion.sites.table import Stack

ENCODER = Stack("encoder.{}", "up", "down", "act")
DECODER = Stack("decoder.{}", "up", "down", "act")


def sites(stack: Stack = ENCODER, number: int = 12, width: int = 100) -> list[Site]:
    return [Site(stack.layer.format(i), i, stack, 8, width, ()) for i in range(number)]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", list(range(12))),
        ("last:8", list(range(4, 12))),
        ("first:2", [0, 1]),
        ("4-11", list(range(4, 12))),
        ("0,3,5", [0, 3, 5]),
        ("3, 0-1", [0, 1, 3]),
        ("11", [11]),
    ],
)
def test_layers_are_parsed(layers, expected):
    assert list(parse_layers(layers, 12)) == expected


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("last:99", r"`layers=last:N` must have N between 1 and 12, got 99"),
        ("first:0", r"`layers=first:N` must have N between 1 and 12, got 0"),
        ("12", r"`layers` must be between 0 and 11, got 12"),
        ("5-3", r"a range in `layers` must ascend, got 5-3"),
        ("", r"`layers` must be `all`"),
        ("-1", r"`layers` must be `all`"),
        ("top", r"`layers` must be `all`.*got 'top'"),
        ("1,,2", r"`layers` must be `all`"),
    ],
)
def test_bad_layers_name_the_field_the_range_and_the_value(layers, message):
    with pytest.raises(InputError, match=message):
        parse_layers(layers, 12)


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({"keep_ratio": 0.25}, 25),
        ({"keep_ratio": 1.0}, 100),
        ({"keep_ratio": 0.001}, 1),
        ({"keep_ratio": 0.25, "round_to": 16}, 32),
        ({"keep_ratio": 0.01, "round_to": 16}, 16),
        ({"keep_ratio": 1.0, "round_to": 64}, 100),
        ({"width": 33}, 33),
    ],
)
def test_widths(options, width):
    assert {entry[1] for entry in make_plan(sites(), Selection(**options)).entries} == {width}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"`width` must be between 1 and 100 at encoder.0, got 0"),
        ({"width": 101}, r"`width` must be between 1 and 100 at encoder.0, got 101"),
        ({"keep_ratio": 0.0}, r"`keep_ratio` must be above 0 and at most 1, got 0.0"),
        ({"keep_ratio": 1.5}, r"`keep_ratio` must be above 0 and at most 1, got 1.5"),
        ({"keep_ratio": float("nan")}, r"`keep_ratio` must be a finite number, got nan"),
        ({}, r"give `keep_ratio=0.25` to keep a quarter of the neurons \(or `width`, or `budget`\)"),
        ({"keep_ratio": 0.5, "width": 5}, r"only one of `keep_ratio` and `width` must be given, got 0.5 and 5"),
        ({"keep_ratio": 0.5, "round_to": 0}, r"`round_to` must be at least 1, got 0"),
        ({"keep_ratio": 0.5, "round_to": 101}, r"`round_to` must be at most 100, the width of encoder.0.*, got 101"),
        (
            {"keep_ratio": 0.5, "round_to": 10**400},
            r"`round_to` must be at most 9223372036854775807, got a whole number of 1329 bits",
        ),
        (
            {"keep_ratio": 0.97, "round_to": 64},
            r"`round_to` must be small enough .*0.97 of 100 neurons is 128 in steps",
        ),
        ({"keep_ratio": 0.99, "round_to": 4}, r"`round_to` must be small enough .*0.99 of 100 neurons is 100 in steps"),
        ({"width": 33, "round_to": 16}, r"`round_to` must be left out with `width`, which is taken as it is, got 16"),
    ],
)
def test_bad_widths_name_the_field_the_range_and_the_value(options, message):
    with pytest.raises(InputError, match=message):
        make_plan(sites(), Selection(**options))


def test_layers_are_selected_in_each_stack_by_itself():
    plan = make_plan(sites(ENCODER, 6) + sites(DECODER, 3), Selection(layers="last:2", width=10))
    assert [site.path for site, _ in plan.entries] == ["encoder.4", "encoder.5", "decoder.1", "decoder.2"]


def sites_of_experts() -> list[Site]:
    model = mixture_model("deepseek_v3")
    return find_sites(model, find_architecture(model))


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", [1, 2]), ("last:1", [2]), ("first:1", [1]), ("1", [1]), ("0-1", [1]), ("2", [2])]
)
def test_layers_without_an_mlp_are_numbered_but_not_counted(layers, expected):
    """The experts of this model begin at layer 1: `last` counts layers that have some, a number is that of a layer."""
    assert sorted({site.layer for site in choose_sites(sites_of_experts(), layers)}) == expected


def test_layers_that_all_lack_an_mlp_are_refused():
    with pytest.raises(InputError, match="`layers` must name a layer with an MLP, which 1, 2 have, got '0'"):
        choose_sites(sites_of_experts(), "0")
