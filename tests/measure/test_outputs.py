"""What leaves a block and its layer: the hidden states that transformers itself hands out."""

import copy

import pytest
import torch
from pico import PICO, others_slow, pico_inputs, pico_model, sites_of
from transformers import AutoModelForSequenceClassification

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.kinds.kind import replace_module
from mlpfusion.kinds.narrow import read_block
from mlpfusion.measure.approximation import Probe, block_errors, references
from mlpfusion.measure.output_error import output_error
from mlpfusion.measure.outputs import outputs_on_inputs_of, recorded_outputs
from mlpfusion.measure.paper_numbers import last_texts, padded_outputs
from mlpfusion.mlp import forward
from mlpfusion.sites.table import ARCHITECTURES
from mlpfusion.sites.traces import mlp_inputs, run_base

NAMES = [name for name in PICO if name != "vit"]
KINDS = {"narrow": mlpfusion.Fusion(), "low-rank": mlpfusion.SVD(), "masked": mlpfusion.Magnitude()}
every_kind = pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)


def padded(name):
    """Two batches, of which the second has samples of 5 and of 7 tokens."""
    first, second = pico_inputs(name), pico_inputs(name, seed=1)
    for key in second:
        if key.endswith("attention_mask"):
            second[key][0, 5:] = 0
    return [first, second]


@torch.no_grad()
def recorded(model, sites, batches):
    with recorded_outputs(model, sites, batches) as recorder:
        for batch in batches:
            run_base(model, batch)
    return recorder.outputs()


@torch.no_grad()
def hidden_states(model, site, batch):
    """What transformers says leaves the layer of a site."""
    outputs = model(**batch, output_hidden_states=True)
    side = "decoder" if site.path.startswith("decoder") else "encoder"
    states = outputs.get(f"{side}_hidden_states" if model.config.is_encoder_decoder else "hidden_states")
    return states[site.layer + 1]


@pytest.mark.parametrize("name", others_slow(NAMES))
def test_the_output_of_a_layer_is_the_hidden_state_that_transformers_hands_out(name):
    model, batches = pico_model(name), padded(name)
    sites = [site for site in sites_of(model) if site.layer < 2]  # a last state may have gone through a final norm
    for site, outputs in zip(sites, recorded(model, sites, batches).values(), strict=True):
        decoder = name.startswith(("t5", "bart")) and site.path.startswith("decoder")
        masks = [torch.ones(2, 7) if decoder else batch["attention_mask"] for batch in batches]
        states = [hidden_states(model, site, batch) for batch in batches]
        wanted = torch.cat([state[mask.bool()] for state, mask in zip(states, masks, strict=True)])
        assert len(wanted) == (28 if decoder else 26)
        assert torch.equal(outputs.block, wanted)


@pytest.mark.parametrize("name", others_slow(NAMES))
def test_outputs_on_the_inputs_of_the_original_know_nothing_of_the_layers_before(name):
    model, batches = pico_model(name), padded(name)
    small = copy.deepcopy(model)
    mlpfusion.compress(small, mlpfusion.Fusion(), layers="all", keep_ratio=0.25)
    sites = sites_of(model)
    wanted = {}
    for site in sites:
        alone = copy.deepcopy(model)
        for part in ("up", "gate", "down", "activation"):
            if getattr(site.stack, part):
                path = site.module_path(part)
                replace_module(alone, path, small.get_submodule(path))
        wanted |= recorded(alone, [site], batches)
    found = outputs_on_inputs_of(model, small, sites, batches)
    assert list(found) == [site.path for site in sites]
    for path, outputs in wanted.items():
        torch.testing.assert_close(found[path].mlp, outputs.mlp)
        torch.testing.assert_close(found[path].block, outputs.block)
    same = outputs_on_inputs_of(model, copy.deepcopy(model), sites, batches)
    for path, outputs in recorded(model, sites, batches).items():
        assert torch.equal(outputs.block, same[path].block)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every_kind
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert"])
def test_the_output_error_is_that_of_the_blocks_on_the_inputs_of_the_original(name, method):
    model, batches = pico_model(name), padded(name)
    small = copy.deepcopy(model)
    mlpfusion.compress(small, method, layers="1", keep_ratio=0.5)
    site, small_site = sites_of(model)[1], sites_of(small)[1]
    row = ARCHITECTURES[name]
    (error,) = block_errors(references(model, [site], batches, Probe()), small, row, batches, Probe())
    inputs = mlp_inputs(model, [site], batches)[site.path]
    before, after = forward(read_block(model, site), inputs), forward(read_block(small, small_site), inputs)
    expected = output_error(before, after).relative
    assert error.output_error == pytest.approx(expected, rel=1e-4)
    assert 0 < error.block_output_error < 2
    states = [(hidden_states(model, site, b), hidden_states(small, site, b), b["attention_mask"]) for b in batches]
    before, after = (torch.cat([s[i][s[2].bool()] for s in states]).double() for i in (0, 1))
    assert error.block_output_absolute == pytest.approx(float((after - before).norm(dim=1).mean()))
    assert error.block_output_error == pytest.approx(error.block_output_absolute / float(before.norm(dim=1).mean()))
    assert error.authors is None


def test_the_authors_numbers_are_of_the_last_batch_with_its_padding_and_of_prob0():
    model = pico_model("bert", AutoModelForSequenceClassification)
    small = copy.deepcopy(model)
    mlpfusion.compress(small, mlpfusion.Fusion(), layers="1", keep_ratio=0.25)
    site, batches, row = sites_of(model)[1], padded("bert"), ARCHITECTURES["bert"]
    last = batches[1]
    for scalar in ("logit", "prob0"):
        before = references(model, [site], batches, Probe(scalar), last)
        (error,) = block_errors(before, small, row, batches, Probe(scalar), authors_batch=last)
        assert error.authors is not None
        states = [hidden_states(one.base_model, site, last) for one in (model, small)]
        assert states[0].shape == (2, 7, 32)
        wanted = float((states[1] - states[0]).norm(dim=2).mean())
        assert error.authors.output == pytest.approx(wanted, rel=1e-5)
        prob0 = references(model, [site], batches, Probe("prob0"))
        (of_prob0,) = block_errors(prob0, small, row, batches, Probe("prob0"))
        assert error.authors.kernel == pytest.approx(of_prob0.adam.total.absolute, rel=1e-6)
        assert (error.adam.total.absolute == pytest.approx(error.authors.kernel, rel=1e-6)) == (scalar == "prob0")
    assert padded_outputs(model, [site], last)[site.path].shape == (14, 32)


def test_the_last_batch_of_sst2_has_eight_texts():
    texts = [str(number) for number in range(872)]
    assert last_texts(texts) == texts[864:]
    assert last_texts(texts[:64]) == texts[32:64]
    assert last_texts(texts[:1]) == ["0"]


def test_no_batch_is_refused():
    model = pico_model("bert")
    with pytest.raises(InputError, match="`batches` must hold at least one batch, got none"):
        outputs_on_inputs_of(model, model, sites_of(model), [])
