"""NIRVANA on mixtures of experts: the saliency against autograd, one width a mixture against a search."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mixtures import WIDTH, mixture_model, slow_but, switch_model
from saliency import saliency_by_hand
from torch import Tensor

import mlpfusion
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.methods.calibrated.nirvana import NIRVANA, saliency, widths_under_one_threshold
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.sites import Site, by_block, find_sites, read_mlp

# Six short texts in two batches with padding: to some experts only some of them lead.
TEXTS = [
    {"input_ids": ids, "attention_mask": (torch.arange(5) < torch.tensor(lengths)[:, None]).long()}
    for ids, lengths in zip(
        torch.randint(3, 67, (2, 3, 5), generator=torch.Generator().manual_seed(3)), ((1, 5, 2), (3, 1, 2)), strict=True
    )
]


def sites_of(model: Any) -> list[Site]:
    return find_sites(model, find_architecture(model))


def in_float64(name: str) -> Any:
    """The model in float64, which only the plain kernel of its experts takes."""
    model = switch_model(torch.float64) if name == "switch" else mixture_model(name, torch.float64)
    if getattr(model.config, "_experts_implementation", None) is not None:
        model.set_experts_implementation("eager")
    return model


def inputs_of(name: str) -> list[dict[str, Tensor]]:
    if name != "switch":
        return TEXTS
    return [batch | {f"decoder_{key}": value for key, value in batch.items()} for batch in TEXTS]


def peak_gradients(model: Any, batches: list[dict[str, Tensor]]) -> Any:
    """A copy of the model that holds gradients in the place of weights, of NIRVANA's f."""
    own, number = copy.deepcopy(model).requires_grad_(), sum(len(batch["input_ids"]) for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        logits = own(**batch).logits
        mask = batch.get("decoder_attention_mask", batch["attention_mask"])
        hidden = logits.masked_fill(~mask.bool()[..., None], -torch.inf)
        total = total + hidden.amax(1).mean(1).sum()  # not divided here: some norms round to fp32
    total.backward()
    for parameter in own.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad / number
    return own


@pytest.mark.parametrize("name", [*slow_but("deepseek_v3", "gpt_oss", "llama4_text", "mixtral"), "switch"])
def test_the_saliency_of_experts_is_that_of_autograd(name):
    model, batches = in_float64(name), inputs_of(name)
    sites = sites_of(model)
    traced = trace_calibration(model, sites, batches, 0, scalar="peak")
    gradients, reached_by_some = peak_gradients(model, batches), 0
    for site in sites:
        expected, seen = saliency_by_hand(read_mlp(model, site), read_mlp(gradients, site)), traced.at(site)
        if seen is None:
            assert not expected.any()
            continue
        reached_by_some += seen.trace.num_samples < 6
        found = saliency(read_mlp(model, site), seen.trace, seen.num_samples)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-14)
    assert reached_by_some  # else the number of all samples was not tested


def by_search(scores: Sequence[Sequence[Tensor]], total: int, steps: list[int]) -> list[int]:
    """Lowers the threshold from mean score to mean score, as long as the rounded widths fit."""
    means = [torch.stack([one.sort(descending=True).values for one in group]).mean(0) for group in scores]
    least = [min(step, len(mean)) for mean, step in zip(means, steps, strict=True)]
    widths = least
    for threshold in torch.cat(means).sort(descending=True).values:
        rounded = [
            min(len(mean), max(step, -(-int((mean >= threshold).sum()) // step) * step))
            for mean, step in zip(means, steps, strict=True)
        ]
        if sum(width * len(group) for width, group in zip(rounded, scores, strict=True)) > total:
            break
        widths = rounded
    return widths


@pytest.mark.parametrize("steps", [[1, 1, 1], [8, 8, 3]], ids=str)
def test_one_threshold_gives_the_widths_of_a_search(steps):
    shapes = [(4, 24), (2, 40), (1, 31)]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = [torch.rand(shape, generator=generator).double() ** (1 + i) for i, shape in enumerate(shapes)]
        least = sum(step * rows for step, (rows, _) in zip(steps, shapes, strict=True))
        whole = sum(rows * width for rows, width in shapes)
        for total in (least, (least + whole) // 2, whole - 1, whole):
            widths = widths_under_one_threshold(scores, total, steps)
            assert widths == by_search([list(one) for one in scores], total, steps)
            kept = sum(width * rows for width, (rows, _) in zip(widths, shapes, strict=True))
            assert total - max(step * rows for step, (rows, _) in zip(steps, shapes, strict=True)) < kept <= total


@pytest.mark.parametrize("name", [*slow_but("deepseek_v3", "gpt_oss", "mixtral"), "switch"])
def test_mixtures_share_the_neurons_and_each_has_one_width(name):
    model = switch_model() if name == "switch" else mixture_model(name)
    batches, blocks = inputs_of(name), by_block(sites_of(model))
    traced, scores = trace_calibration(model, sites_of(model), batches, 0, scalar="peak"), []
    for block in blocks.values():
        seen = [traced.at(site) for site in block]
        mlps = [read_mlp(model, site) for site in block]
        scores.append([
            torch.zeros(mlp.num_neurons).double() if one is None else saliency(mlp, one.trace, one.num_samples)
            for mlp, one in zip(mlps, seen, strict=True)
        ])  # fmt: skip
    steps = [1 if name == "switch" else 8] * len(blocks)
    width = {site.intermediate_size for site in sites_of(model)}.pop()
    record = mlpfusion.compress(model, NIRVANA(), keep_ratio=0.5, calibration=batches)
    expected = by_search(scores, width // 2 * sum(map(len, scores)), steps)
    found = [{site.intermediate_size for site in block} for block in by_block(sites_of(model)).values()]
    assert found == [{one} for one in expected]
    assert record.recipe["calibration"] == {"samples": 6, "tokens": 14}


def test_an_expert_that_no_token_reaches_is_fused_to_the_width_of_its_mixture():
    model, original = mixture_model("mixtral"), mixture_model("mixtral")
    one = [{"input_ids": torch.tensor([[5, 5]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}]
    record = mlpfusion.compress(model, NIRVANA(), keep_ratio=0.5, calibration=one)
    assert all(site.metrics["fewest_tokens"] == 0 for site in record.sites)
    traced = trace_calibration(original, sites_of(original), one, 0, scalar="peak")
    for site, small in zip(sites_of(original), sites_of(model), strict=True):
        if traced.at(site) is None:
            rows = {tuple(row.tolist()) for row in read_mlp(original, site).up}
            fused = read_mlp(model, small)
            assert fused.num_neurons == small.intermediate_size
            assert not {tuple(row.tolist()) for row in fused.up} <= rows  # means of neurons, not neurons


def test_all_neurons_of_a_mixture_are_kept_where_all_are_asked_for():
    model = mixture_model("mixtral")
    before = copy.deepcopy(model.state_dict())
    record = mlpfusion.compress(model, NIRVANA(), keep_ratio=1.0, calibration=inputs_of("mixtral") * 4)
    assert [site.width for site in record.sites] == [WIDTH] * 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
