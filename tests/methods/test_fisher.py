"""Fisher: the information of the neurons against autograd on whole models, of experts too, and what is kept."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mixtures import mixture_model, slow_but
from pico import others_slow, pico_model, sites_of
from random_mlp import make_mlp
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

import mlpfusion
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.errors import InputError
from mlpfusion.kernel import BlockTrace, NextTokens
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.methods.block import Block
from mlpfusion.methods.calibrated.calibration import Calibration
from mlpfusion.methods.calibrated.fisher import Fisher, information
from mlpfusion.methods.run import compress_blocks
from mlpfusion.mlp import neurons
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.sites import find_sites, read_mlp

Batch = dict[str, Tensor]


def texts_of_two_tokens(*, left: bool) -> list[Batch]:
    """Six texts in two batches, of two tokens among padding: f reads the first token alone."""
    mask = torch.tensor([0, 0, 0, 1, 1] if left else [1, 1, 0, 0, 0]).repeat(3, 1)
    ids = torch.randint(3, 50, (2, 3, 5), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": one, "attention_mask": mask} for one in ids]


def by_autograd(model: Any, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The squares of df/dm by site, added over the samples, of which each has one token with a gradient.

    The factor m of a neuron multiplies its column of `down`, so df/dm is that column times its gradient.
    """
    sites = find_sites(model, find_architecture(model))
    total = {site.path: torch.zeros(site.intermediate_size, dtype=torch.float64) for site in sites}
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            own = copy.deepcopy(model).requires_grad_()
            likelihood(own, {name: value[row : row + 1] for name, value in batch.items()}).backward()
            for parameter in own.parameters():
                parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for site in sites:
                total[site.path] += (read_mlp(model, site).down * read_mlp(own, site).down).sum(0).square().detach()
    return total


def likelihood(model: Any, sample: Batch) -> Tensor:
    first, second = sample["attention_mask"][0].nonzero().flatten()
    return model(**sample).logits[0, first].log_softmax(0)[sample["input_ids"][0, second]]


def assert_information_is_that_of_autograd(model: Any, batches: Sequence[Batch], least: float, rtol: float) -> None:
    sites = find_sites(model, find_architecture(model))
    traced, expected = trace_calibration(model, sites, batches, 0, scalar="likelihood"), by_autograd(model, batches)
    assert sum(int(one.count_nonzero()) for one in expected.values()) > least * sum(map(len, expected.values()))
    for site in sites:
        seen = traced.at(site)
        found = torch.zeros_like(expected[site.path])
        if seen is not None:
            found = information(read_mlp(model, site), seen.trace)
        torch.testing.assert_close(found, expected[site.path], rtol=rtol, atol=1e-16)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", others_slow(["llama", "llama-biased", "gpt2", "opt"], quick=("llama", "gpt2")))
def test_the_information_in_a_causal_model_is_that_of_autograd(name, left):
    model = pico_model(name, AutoModelForCausalLM, dtype=torch.float64)
    assert_information_is_that_of_autograd(model, texts_of_two_tokens(left=left), least=0.3, rtol=1e-8)


@pytest.mark.parametrize("name", slow_but("deepseek_v3", "gpt_oss", "llama4_text", "mixtral"))
def test_the_information_in_experts_is_that_of_autograd(name):
    model = mixture_model(name, torch.float64)
    model.set_experts_implementation("eager")  # the others do not take float64
    # routers compute in fp32, and a batch rounds there as no single text does
    assert_information_is_that_of_autograd(model, texts_of_two_tokens(left=False), least=0.1, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_without_a_head_that_predicts_the_next_token_f_is_a_logit_of_a_random_head(name):
    model, batches = pico_model(name, AutoModel), texts_of_two_tokens(left=False)
    likelihood, head = (
        trace_calibration(model, sites_of(model), batches, 0, scalar=scalar) for scalar in ("likelihood", "head")
    )
    for site in sites_of(model):
        cotangents = likelihood.traces[site.path].cotangents
        assert cotangents.any()
        assert torch.equal(cotangents, head.traces[site.path].cotangents)


def test_the_likelihood_is_the_loss_of_transformers():
    model = pico_model("llama", AutoModelForCausalLM, dtype=torch.float64)
    ids = torch.randint(3, 50, (1, 9), generator=torch.Generator().manual_seed(1))
    expected = -8 * model(input_ids=ids, labels=ids).loss.double()  # transformers computes it in fp32
    found = NextTokens().logits(model(input_ids=ids).logits, ids, None)
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-6, atol=0)
    # a hidden token is neither predicted nor predicts
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1]])
    scores = model(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).flatten()
    kept = scores[[0, 3, 4, 5, 6, 7]].sum()
    torch.testing.assert_close(NextTokens().logits(model(input_ids=ids).logits, ids, mask)[0, 0], kept)


def test_more_tokens_than_are_taken_at_once():
    mlp = make_mlp(gated=True)
    generator = torch.Generator().manual_seed(5)
    inputs, cotangents = torch.randn(2, 9000, mlp.hidden_size, generator=generator, dtype=torch.float64)
    halves = [BlockTrace(x, d, torch.tensor([4500])) for x, d in zip(inputs.split(4500), cotangents.split(4500))]  # noqa: B905
    whole = information(mlp, BlockTrace(inputs, cotangents, torch.tensor([4500, 4500])))
    torch.testing.assert_close(whole, sum(information(mlp, half) for half in halves), rtol=1e-12, atol=0)


def block(mlp: Any, **trace: Tensor) -> Block:
    generator = torch.Generator().manual_seed(2)
    inputs, cotangents = torch.randn(2, 30, mlp.hidden_size, generator=generator).to(mlp.up)
    given = {"inputs": inputs, "cotangents": cotangents, "lengths": torch.tensor([30])} | trace
    return Block(mlp, 5, torch.Generator(), calibration=Calibration(BlockTrace(**given)))


def test_the_neurons_with_the_most_information_are_kept_in_their_order():
    one = block(make_mlp(gated=True))
    (outcome,) = compress_blocks([one], Fisher())
    assert isinstance(outcome, Narrowed)
    score = information(one.mlp, one.inputs.trace)
    best = score.topk(5).indices.sort().values
    assert torch.equal(neurons(outcome.mlp), neurons(one.mlp)[best])
    assert outcome.metrics == {"kept_score": pytest.approx(float(score[best].sum() / score.sum()))}


def test_information_that_overflows_is_refused():
    mlp = make_mlp(dtype=torch.float32)
    mlp.down[0, 3] = 3e38
    with pytest.raises(InputError, match=r"the Fisher information of the neurons must be finite, got \d+ NaN or Inf"):
        list(compress_blocks([block(mlp)], Fisher()))


def test_batches_without_ids_are_refused():
    model = pico_model("llama", AutoModelForCausalLM)
    states = torch.randn(1, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="must hold input_ids, whose likelihood is f, got inputs_embeds"):
        mlpfusion.compress(model, Fisher(), keep_ratio=0.5, calibration=[{"inputs_embeds": states}])
