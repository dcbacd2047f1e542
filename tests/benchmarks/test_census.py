"""The census counts dense MLPs by a rule of its own."""

from typing import Any

import pytest
from scripts import load_script
from torch import nn


@pytest.fixture(scope="module")
def census() -> Any:
    return load_script("benchmarks/census.py")


@pytest.mark.parametrize(
    ("name", "status", "holds"),
    [
        ("bert", "row", "dense"),
        ("bloom", "found", "dense"),
        ("mixtral", "found", "experts"),
        ("jetmoe", "refused", "experts"),
        ("mamba", "refused", None),
        ("blip_text_model", "unbuilt", None),
    ],
)
def test_each_outcome_has_a_type(census, name, status, holds):
    found = census.census_of(name)
    assert found.status == status
    assert [kind for kind in ("dense", "experts") if getattr(found, kind)] == ([holds] if holds else [])
    assert (found.share == 1) == (status in ("row", "found"))
    assert (found.reason is None) == bool(found.stacks)


def test_the_rule_wants_two_maps_of_one_layer_without_a_convolution(census):
    class Paired(nn.Module):
        def __init__(self, beside: nn.Module) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 12), nn.Linear(12, 4)
            self.beside = beside

    assert len(census._paired_maps(Paired(nn.Identity()))) == 2
    assert len(census._paired_maps(Paired(nn.Linear(4, 12)))) == 3
    assert not census._paired_maps(Paired(nn.Conv2d(12, 12, 1)))
    assert not census._paired_maps(nn.ModuleList([nn.Linear(4, 12), nn.Linear(12, 4)]))
