"""Traces of experts: one record a mixture, whose gradients are those of autograd."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mixtures import mixture_model, slow_but, switch_model
from torch import Tensor

from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace, alternating_logit
from mlpfusion.kernel.gradient import weight_gradients
from mlpfusion.mlp import MLP, forward
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.traces import RecordedTraces
from mlpfusion.sites.sites import Site, base_model, find_sites, read_mlp
from mlpfusion.sites.traces import random_head, random_traces, recorded_traces

# Two batches of texts, the second with padding.
IDS = torch.randint(3, 67, (2, 4, 12), generator=torch.Generator().manual_seed(5))
TEXTS = [{"input_ids": IDS[0]}, {"input_ids": IDS[1], "attention_mask": (torch.arange(12) < 7).long().expand(4, 12)}]
# The same with a text for the decoder, whose mask hides some of it.
PAIRS = [
    {
        "input_ids": ids,
        "decoder_input_ids": ids.flip(1),
        "decoder_attention_mask": (torch.arange(12) < size).long().expand(4, 12),
    }
    for ids, size in zip(IDS, (12, 9), strict=True)
]


def float64_mixture(name: str) -> Any:
    model = mixture_model(name, torch.float64)
    model.config._experts_implementation = "eager"  # the kernels refuse float64
    return model


def experts_of(model: Any) -> list[Site]:
    return [site for site in find_sites(model, find_architecture(model)) if site.expert is not None]


def head_of(model: Any) -> Any:
    return random_head(model, torch.Generator().manual_seed(1), 4)


def recorded(model: Any, sites: Sequence[Site], batches: Sequence[Any] = TEXTS) -> RecordedTraces:
    return recorded_traces(model, sites, batches, alternating_logit, head_of(model))


def autograd_gradients(model: Any, batches: Sequence[Any]) -> None:
    """Leaves the gradients of the sum of f over all samples at the parameters."""
    head = head_of(model)
    with torch.enable_grad():
        for batch in batches:
            if model.config.is_encoder_decoder:
                states = model(**batch, output_hidden_states=True).decoder_hidden_states[-1]
            else:
                states = base_model(model)(**batch)[0]
            mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
            alternating_logit(head.logits(states, mask)).sum().backward()


def summed(site: Site, model: Any, traces: RecordedTraces) -> dict[str, Tensor]:
    """The gradients of f by the weights of one expert, by field, from its trace; none for one without tokens."""
    trace, mlp = traces.at(site), read_mlp(model, site)
    if trace is None:
        return {}
    found = {} if mlp.down_bias is None else {"down_bias": trace.cotangents.sum(0)}
    for gradient in weight_gradients(mlp, trace):
        product = gradient.signals.T @ gradient.vectors
        found[gradient.name] = product.T if gradient.name == "down" else product
        if gradient.bias is not None:
            found[gradient.bias] = gradient.signals.sum(0)
    return found


def assert_gradients_are_those_of_autograd(model: Any, batches: Sequence[Any]) -> None:
    sites = experts_of(model)
    traces = recorded(model, sites, batches)
    assert all(parameter.grad is None for parameter in model.parameters())
    autograd_gradients(model, batches)
    parameters = dict(base_model(model).named_parameters())
    reached = 0
    for site in sites:
        found = summed(site, model, traces)
        reached += bool(found)
        assert not found or set(found) == set(read_mlp(model, site).tensors())
        for weight in site.weights:
            if weight.name not in parameters:
                continue
            whole = parameters[weight.name]
            expected = weight.view(torch.zeros_like(whole) if whole.grad is None else whole.grad)
            assert not found or expected.abs().max() > 0
            torch.testing.assert_close(
                found.get(weight.field, torch.zeros_like(expected)), expected, rtol=1e-11, atol=1e-13
            )
    assert reached > len(sites) / 2


@pytest.mark.parametrize("name", slow_but("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3", "llama4_text"))
def test_gradients_from_the_traces_are_those_of_autograd(name):
    assert_gradients_are_those_of_autograd(float64_mixture(name), TEXTS)


def test_gradients_at_experts_that_are_modules_of_their_own_are_those_of_autograd():
    assert_gradients_are_those_of_autograd(switch_model().double(), PAIRS)


def test_mlps_beside_the_experts_are_recorded_with_them_as_by_themselves():
    model = float64_mixture("deepseek_v3")
    sites = find_sites(model, find_architecture(model, "all"))
    alone = [site for site in sites if site.expert is None]
    expected = recorded_traces(model, alone, TEXTS, alternating_logit, head_of(model)).blocks
    found = recorded(model, sites)
    assert set(found.blocks) == set(expected)
    assert len(found.mixtures) == 2
    for path, trace in expected.items():
        assert torch.equal(found.blocks[path].inputs, trace.inputs)
        torch.testing.assert_close(found.blocks[path].cotangents, trace.cotangents, rtol=1e-12, atol=1e-15)
        assert found.blocks[path].lengths.tolist() == trace.lengths.tolist() == [12] * 4 + [7] * 4


def test_an_expert_without_tokens_has_no_trace_and_the_others_hold_every_choice():
    model = float64_mixture("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, output: (*output[:2], output[2] % 2 + 2))
    sites = experts_of(model)
    traces = recorded(model, sites)
    assert [traces.at(site) is None for site in sites] == [True, True, False, False] * 3
    (tokens, *_) = traces.mixtures.values()
    assert tokens.cotangents is not None
    assert len(tokens.routing.inputs) == len(tokens.cotangents) == 4 * 12 + 4 * 7
    assert tokens.samples.unique_consecutive(return_counts=True)[1].tolist() == [12] * 4 + [7] * 4


def test_an_expert_is_refused_where_one_trace_a_site_is_wanted():
    model = float64_mixture("mixtral")
    with pytest.raises(InputError, match="must be MLPs that every token goes through, got the expert layers.0"):
        random_traces(model, experts_of(model), TEXTS, torch.Generator())


def test_a_mixture_must_run_once_a_pass():
    model = float64_mixture("mixtral")
    sites = experts_of(model)
    experts, layer = model.model.layers[1].mlp.experts, model.model.layers[1].mlp
    again = layer.register_forward_hook(lambda _module, args, _output: layer.forward(*args))
    with pytest.raises(InputError, match=r"must run once a forward pass, got 2 runs of layers.1.mlp.experts"):
        recorded(model, sites)
    again.remove()
    layer.forward = lambda states: states
    with pytest.raises(InputError, match=r"must run once a forward pass, got 0 runs of layers.1.mlp.experts"):
        recorded(model, sites)
    assert not experts._forward_hooks


def test_frozen_experts_are_recorded_as_trained_ones():
    model = float64_mixture("olmoe")
    sites = experts_of(model)
    wanted, found = recorded(model, sites), recorded(model.requires_grad_(False), sites)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for path, tokens in wanted.mixtures.items():
        assert tokens.cotangents is not None
        assert found.mixtures[path].cotangents is not None
        torch.testing.assert_close(found.mixtures[path].cotangents, tokens.cotangents, rtol=1e-12, atol=1e-15)
        assert not found.mixtures[path].routing.weights.requires_grad


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_of_a_gating_can_be_differentiated(scaled):
    generator = torch.Generator().manual_seed(0)
    up, gate, down, inputs, cotangents = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((5, 3), (5, 3), (3, 5), (4, 3), (4, 3))
    )
    tensors = [one.requires_grad_() for one in (gate, up, down)]
    scale = torch.tensor([1, 2, 3, 4, 5], dtype=torch.int32) if scaled else None
    mlp = MLP(up, down, torch.relu, gate, output_scale=scale, gating=lambda gate, up: (up + 1) * gate * gate.sigmoid())
    trace = BlockTrace(inputs, cotangents, torch.tensor([4]))
    found = [one.signals.T @ one.vectors for one in weight_gradients(mlp, trace, create_graph=True)]
    found[2] = found[2].T
    f = (forward(mlp, inputs) * cotangents).sum()
    expected = torch.autograd.grad(f, tensors, create_graph=True)
    plain = [one.signals.T @ one.vectors for one in weight_gradients(mlp, trace)]
    for first, second in zip(found, expected, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(plain[0], expected[0].detach(), rtol=1e-12, atol=1e-12)
    assert not any(one.requires_grad for one in plain)
    second_order = [
        torch.autograd.grad(torch.stack([one.square().sum() for one in g]).sum(), tensors) for g in (found, expected)
    ]
    for first, second in zip(*second_order, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)
