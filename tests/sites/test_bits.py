"""Numbers kept as whole numbers: the same ones by looking at the bits and by arithmetic, in every graph."""

from typing import Any

import pytest
import torch
from mixtures import mixture_model
from pico import pico_inputs, pico_model

import mlpfusion
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.kinds.outcome import Routed
from mlpfusion.options.selection import Selection
from mlpfusion.sites.bits import as_bits, computed_from_bits, from_bits
from mlpfusion.sites.sites import find_sites, read_mlp
from mlpfusion.sites.table import ARCHITECTURES


def test_arithmetic_gives_every_finite_number_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=generator).to(torch.int32)
    edges = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-126, -(2.0**-126), torch.finfo(torch.float32).max, 2.0**-149])
    bits = torch.cat([bits[bits.view(torch.float32).isfinite()], as_bits(edges)])
    assert torch.equal(as_bits(computed_from_bits(bits)), bits)
    assert torch.equal(as_bits(from_bits(bits)), bits)


def matched():
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.NTKMatch(), width=14, calibration=[pico_inputs("bert")])
    return model


def routed():
    model = pico_model("llama")
    selection = Selection(layers="last:1", keep_ratio=0.5)
    plan = make_plan(find_sites(model, ARCHITECTURES["llama"]), selection)
    ((site, _),) = plan.entries
    router = torch.randn(4, site.hidden_size, generator=torch.Generator().manual_seed(0))
    outcome = Routed(read_mlp(model, site), router, -torch.eye(4), 2, metrics={})
    settings = Settings(mlpfusion.MoEfication(), selection, 0)
    install_outcomes(model, plan, [outcome], ARCHITECTURES["llama"], settings, torch.device("cpu"))
    return model


def matched_experts():
    model = mixture_model("mixtral")
    ids = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    mlpfusion.compress(model, mlpfusion.NTKMatch(refine_epochs=1), keep_ratio=0.5, calibration=[{"input_ids": ids}])
    return model.model


@pytest.mark.slow
@pytest.mark.parametrize("make", [matched, routed, matched_experts])
def test_an_exported_graph_looks_at_no_bits_and_gives_the_same(make):
    model, ids = make(), dict[str, Any](input_ids=pico_inputs("llama")["input_ids"])
    if model.config.model_type != "bert":
        ids["use_cache"] = False
    with torch.no_grad():
        graph = torch.export.export(model, (), ids, strict=False)
        expected, found = model(**ids)[0], graph.module()(**ids)[0]
    assert "view.dtype" not in graph.graph_module.print_readable(print_output=False)
    torch.testing.assert_close(found, expected)
