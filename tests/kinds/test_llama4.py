"""Llama 4, whose router weighs tokens before they enter its experts, alone and in a model of texts and images."""

import copy
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call
from detected import detected_model, loaded
from mixtures import fused_mixture, mixture_logits, mixture_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

import mlpfusion
from mlpfusion.checkpoint.config import read_config
from mlpfusion.checkpoint.read import load_model
from mlpfusion.errors import InputError
from mlpfusion.kernel import alternating_logit
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import RoutedTokens, called_routing
from mlpfusion.sites.sites import Site, base_model, base_prefix, find_sites
from mlpfusion.sites.traces import random_head, recorded_traces
from mlpfusion.sites.waiting import waiting_passes

IDS = torch.randint(3, 66, (2, 4, 12), generator=torch.Generator().manual_seed(5))
TEXTS = [
    {"input_ids": ids, "attention_mask": (torch.arange(12) < lengths[:, None]).long()}
    for ids, lengths in zip(IDS, torch.tensor([[12, 5, 12, 9], [1, 12, 7, 12]]), strict=True)
]
REFIT = mlpfusion.NTKMatch(match="none", refine_epochs=0)


def experts_of(model: Any) -> list[Site]:
    return find_sites(model, find_architecture(model))


def entering(model: Any) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What enters each mixture and the weights that its router gives every expert, by path and batch."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.no_grad():
        for path in dict.fromkeys(site.mixture or "" for site in experts_of(model)):
            router: Any = base_model(model).get_submodule(path.replace("experts", "router"))
            seen = found.setdefault(path, [])
            hook = router.register_forward_hook(lambda _, args, output, seen=seen: seen.append((args[0], output[0])))
            for batch in TEXTS:
                model(**batch)
            hook.remove()
    return found


def assert_every_row_is_there(found: RoutedTokens, entered: list[tuple[Tensor, Tensor]]) -> None:
    """Every token that is not padding, times the weight of an expert that is chosen for it, of its own sample."""
    visible = torch.cat([batch["attention_mask"].reshape(-1).bool() for batch in TEXTS])
    samples = torch.arange(8).repeat_interleave(12)[visible]
    states, weights = (torch.cat(parts)[visible] for parts in zip(*entered, strict=True))
    assert found.lengths.tolist() == [12, 5, 12, 9, 1, 12, 7, 12]
    assert len(found.samples) == 2 * len(states)  # two experts a token
    for expert in range(4):
        chosen = weights[:, expert] > 0
        rows, ones = found.routing.of_expert(expert)
        assert torch.equal(found.routing.inputs[rows], states[chosen] * weights[chosen, expert, None])
        assert torch.equal(found.samples[rows], samples[chosen])
        assert (ones == 1).all()


def test_an_expert_is_calibrated_on_the_tokens_that_its_router_weighs():
    model = mixture_model("llama4_text")
    entered, sites = entering(model), experts_of(model)
    with torch.no_grad(), waiting_passes(model, sites, TEXTS) as passes:
        for path, members in ((path, [one for one in sites if one.mixture == path]) for path in entered):
            tokens = passes.tokens_at(members[0])
            assert_every_row_is_there(tokens, entered[path])
            for site in members:
                assert site.expert is not None
                found = tokens.trace_of(site.expert)
                assert found is not None
                trace, weights = found
                rows, _ = tokens.routing.of_expert(site.expert)
                assert torch.equal(trace.inputs, tokens.routing.inputs[rows])
                assert trace.lengths.tolist() == tokens.samples[rows].unique(return_counts=True)[1].tolist()
                assert (weights == 1).all()


def test_the_gradients_at_the_experts_are_those_of_the_same_rows():
    model = mixture_model("llama4_text")
    entered, sites = entering(model), experts_of(model)
    head = random_head(model, torch.Generator().manual_seed(1), 4)
    for path, tokens in recorded_traces(model, sites, TEXTS, alternating_logit, head).mixtures.items():
        assert_every_row_is_there(tokens, entered[path])
        assert tokens.cotangents is not None
        assert tokens.cotangents.abs().amax(1).min() > 0


def test_an_expert_that_no_token_reaches_is_fused_and_the_record_counts_tokens_not_rows():
    model, alone = mixture_model("llama4_text"), mixture_model("llama4_text")
    mlpfusion.compress(alone, mlpfusion.FoldedFusion(), keep_ratio=0.5)
    for layer in model.model.layers[1:]:
        layer.feed_forward.router.register_forward_hook(
            lambda _module, _args, output: (output[0] * torch.tensor([0, 1, 1, 1]), output[1])
        )
    record = mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS)
    assert record.recipe["calibration"] == {"samples": 8, "tokens": 70}
    for site in record.sites:
        assert site.metrics["fewest_tokens"] == 0
        small, fused = (base_model(one).get_submodule(site.path).get_parameter("down_proj") for one in (model, alone))
        assert [torch.equal(*pair) for pair in zip(small, fused, strict=True)] == [True, False, False, False]


@pytest.mark.parametrize("shape", [(7, 32), (4, 8, 32)])
def test_one_tensor_that_is_no_row_of_tokens_for_every_expert_is_refused(shape):
    experts = mixture_model("llama4_text").model.layers[1].feed_forward.experts
    with pytest.raises(InputError, match=r"the experts at here must be called with .* they are called in another way"):
        called_routing("here", experts, (torch.ones(shape),), {})
    assert called_routing("here", experts, (torch.ones(8, 32),), {}).copies == 4


@pytest.mark.parametrize("change", [lambda output: output + 0.1, lambda output: 2 * output])
def test_experts_that_give_something_else_are_refused_by_the_proof(change):
    """A sum that is not zero where no token enters is seen too."""
    model = mixture_model("llama4_text")
    model.model.layers[2].feed_forward.experts.register_forward_hook(lambda _module, _args, output: change(output))
    with pytest.raises(InputError, match=r"it does not at layers.2.feed_forward.experts: is there more in them than"):
        mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)


def test_copies_of_all_tokens_that_have_no_room_are_refused(monkeypatch):
    """The first passes: 96 tokens of 32 numbers three times; then 48 tokens that wait with four copies twice."""
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("mlpfusion.sites.waiting.psutil.virtual_memory", lambda: memory(4 * 48 * 32 * 8 - 1))
    model = mixture_model("llama4_text")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"`calibration` must be small enough .* got 48 tokens, which take"):
        mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    monkeypatch.setattr("mlpfusion.sites.waiting.psutil.virtual_memory", lambda: memory(4 * 48 * 32 * 8))
    mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS)


def test_a_cut_language_model_is_read_without_its_head(tmp_path):
    """transformers calls `language_model` what is the base of the whole, and the base of this one is its `model`."""
    model = fused_mixture("llama4_text")
    assert base_model(model) is model.model
    assert base_prefix(model) == "model."
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert base_model(base) is base
    assert [site.path for site in experts_of(base)] == [site.path for site in experts_of(model)]
    with torch.no_grad():
        torch.testing.assert_close(base(IDS[0])[0], model.model(IDS[0])[0])


def test_a_weight_that_is_lost_is_told(tmp_path):
    mixture_model("llama4_text").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.feed_forward.router.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"must hold all weights of the base model, it lacks 1: model.layers.1.feed"):
        load_model(tmp_path, read_config(tmp_path))


def text_logits(model: Any) -> Tensor:
    """Those of the language model inside: the class around it does not run in every version of transformers."""
    return mixture_logits(model.language_model)


@pytest.mark.parametrize(
    ("stacks", "expected"),
    [
        (None, ["language_model.model.layers.1.feed_forward.experts"]),
        ("shared", ["language_model.model.layers.1"]),
        ("dense", ["vision_model.model.layers.0", "language_model.model.layers.0"]),
    ],
)
def test_the_experts_of_a_model_of_texts_and_images_are_found_and_proven(stacks, expected, tmp_path):
    model = detected_model("llama4")
    before = text_logits(model)
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks=stacks)
    assert [site.path for site in record.sites] == expected
    model.save_pretrained(tmp_path)
    assert torch.equal(text_logits(loaded(tmp_path, "llama4").eval()), text_logits(model))
    assert not torch.equal(text_logits(model), before)


def test_a_model_of_texts_and_images_is_streamed_to_the_same_tensors(tmp_path):
    detected_model("llama4").save_pretrained(tmp_path / "source")
    for out, flags in (("whole", ()), ("streamed", ("--stream",))):
        told = call("compress", tmp_path / "source", tmp_path / out, "--keep-ratio", 0.5, *flags)
        assert told.exit_code == 0, told.output
    whole, streamed = (Path(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "streamed"))
    assert whole == streamed


def runs_on_texts(model: nn.Module) -> bool:
    try:
        model(**TEXTS[0])
    except AttributeError:  # transformers 5.24 asks the language model for outputs of images
        return False
    return True


def test_a_model_of_texts_and_images_is_calibrated_where_transformers_runs_it():
    model = detected_model("llama4")
    if runs_on_texts(model):
        record = mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS)
        assert all(site.metrics["output_error_refit"] < site.metrics["output_error_chosen"] for site in record.sites)
        return
    with pytest.raises(InputError, match=r"must hold batches that a Llama4ForConditionalGeneration takes, batch 1"):
        mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS)
    mlpfusion.compress(model.language_model, REFIT, keep_ratio=0.5, calibration=TEXTS)


def test_calibration_in_sequence_is_refused():
    model = mixture_model("llama4_text")
    with pytest.raises(InputError, match="`sequential` must be left out at layers.1.feed_forward.experts"):
        mlpfusion.compress(model, REFIT, keep_ratio=0.5, calibration=TEXTS, sequential=True)
