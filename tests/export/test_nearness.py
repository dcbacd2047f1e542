"""How near two outputs are."""

import pytest
import torch

from mlpfusion.export.nearness import NEXT_TOKEN, divergence, largest_difference


def test_the_divergence_is_that_of_the_distributions():
    expected, found = torch.randn(2, 3, 7, dtype=torch.float64)
    mine, other = (torch.distributions.Categorical(logits=rows) for rows in (expected, found))
    theirs = torch.distributions.kl_divergence(mine, other)
    assert divergence(found, expected) == pytest.approx(float(theirs.mean()))
    assert divergence(expected + 3, expected) == pytest.approx(0, abs=1e-12)


def test_what_is_improbable_moves_the_largest_difference_alone():
    expected = torch.tensor([[0.5, 0.5 - 1e-9, 1e-9]]).log()
    found = expected + torch.tensor([[0.0, 0.0, -5.0]])
    assert largest_difference(found, expected) > 0.2
    assert divergence(found, expected) < 1e-8


def test_another_token_is_told_from_rounding():
    expected = torch.tensor([[0.9, 0.05, 0.05]]).log()
    assert divergence(expected.flip(1), expected) > max(NEXT_TOKEN.most.values())
