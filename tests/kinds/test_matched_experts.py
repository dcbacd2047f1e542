"""Experts with two matched diagonals: exact, saved, loaded in any dtype, trained, folded; damaged files."""

import copy
import pickle
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edit_key import change_key
from mixtures import MIXTURES, WIDTH, mixture_logits, mixture_model, switch_model, trained_by_lora
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import mlpfusion
from mlpfusion.compression.calibration.experts import common_traces
from mlpfusion.compression.calibration.traces import trace_calibration
from mlpfusion.errors import InputError
from mlpfusion.kernel import adam_kernel, kernel_error
from mlpfusion.kinds import narrow
from mlpfusion.kinds.narrow_experts import KIND, ScaledExperts, ScaledTensors, gathered, scaled_class
from mlpfusion.kinds.outcome import Narrowed
from mlpfusion.kinds.table import install
from mlpfusion.mlp import MLP, forward, select_neurons
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.mixtures.routing import RoutedTokens, Routing, mixture_output
from mlpfusion.sites.sites import Site, base_model, by_holder, find_sites, read_mlp

METHOD = mlpfusion.NTKMatch(refine_epochs=0)
BITS = ("input_scale_bits", "output_scale_bits")
# Two batches of texts, the second with padding.
IDS = torch.randint(3, 67, (2, 6, 24), generator=torch.Generator().manual_seed(3))
TEXTS = [
    {"input_ids": IDS[0]},
    {"input_ids": IDS[1], "attention_mask": (torch.arange(24) < 15).long().expand(6, 24)},
]
PAIRS = [{"input_ids": ids, "decoder_input_ids": ids.flip(1)} for ids in IDS]

# Those of gpt-oss take gate and up together.
QUICK = {"aria_text", "deepseek_v3", "mixtral"} & set(MIXTURES)
each_type = pytest.mark.parametrize(
    "name",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in MIXTURES if one != "gpt_oss"],
)


def matched(name: str, dtype: torch.dtype = torch.float32, width: int = WIDTH // 2) -> Any:
    model = mixture_model(name, dtype)
    mlpfusion.compress(model, METHOD, width=width, calibration=TEXTS)
    return model


def scaled_modules(model: Any) -> list[ScaledExperts]:
    return [module for module in model.modules() if isinstance(module, ScaledExperts)]


def diagonals(model: Any) -> list[torch.Tensor]:
    return [module.get_buffer(name).view(torch.float32) for module in scaled_modules(model) for name in BITS]


def sites_of(model: Any) -> list[Site]:
    return find_sites(model, find_architecture(model))


@each_type
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_matched_mixture_is_saved_and_loaded_to_the_bit(name, dtype, tmp_path):
    model = matched(name, dtype)
    assert scaled_modules(model)
    assert all(module.is_matched for module in scaled_modules(model))
    expected = diagonals(model)
    assert any(not torch.equal(scale, scale.bfloat16().float()) for scale in expected)
    model.save_pretrained(tmp_path)
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, output_loading_info=True)
    loaded, told = read
    assert not any(told.values())
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    torch.testing.assert_close(mixture_logits(loaded), mixture_logits(model))
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert all(map(torch.equal, diagonals(rounded), expected))
    assert not any("scale" in key for key, _ in rounded.named_parameters())


@each_type
def test_a_folded_mixture_computes_the_same_with_stock_modules(name):
    model = matched(name)
    logits = mixture_logits(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no entry of the config is known to hold the width")
        mlpfusion.fold(model)
    assert not scaled_modules(model)
    assert not any("scale" in key and "experts" in key for key in model.state_dict())
    torch.testing.assert_close(mixture_logits(model), logits)


def test_a_folded_mixture_is_a_stock_checkpoint(tmp_path):
    model = matched("mixtral")
    logits = mixture_logits(model)
    mlpfusion.fold(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not hasattr(loaded.config, "mlp_fusion")
    torch.testing.assert_close(mixture_logits(loaded), logits)


def with_random_diagonals(name: str) -> tuple[Any, list[Site], Any]:
    """A float64 model whose first mixture is half as wide, with drawn diagonals; its sites, and its experts as MLPs."""
    model = mixture_model(name, torch.float64)
    model.config._experts_implementation = "eager"  # the kernels refuse float64
    sites = next(iter(by_holder(sites_of(model)).values()))
    generator = torch.Generator().manual_seed(4)
    outcomes = []
    for site in sites:
        small = select_neurons(read_mlp(model, site), torch.arange(24))
        scales = [0.5 + torch.rand(24, generator=generator) for _ in range(2)]
        outcomes.append(Narrowed(replace(small, input_scale=scales[0], output_scale=scales[1])))
    ((first, outcome),) = gathered(sites, outcomes)
    install(model, first, outcome)
    return model, sites, [one.mlp for one in outcomes]


@pytest.mark.parametrize("name", sorted({"aria_text", "gpt_oss", "mixtral"} & set(MIXTURES)))
def test_the_module_computes_its_experts_and_a_gradient_is_that_of_the_folded_ones_times_the_scale(name):
    """In float64, for each layout of the tensors, with biases and clamps too."""
    model, sites, experts = with_random_diagonals(name)
    module: Any = base_model(model).get_submodule(sites[0].holder)
    generator = torch.Generator().manual_seed(1)
    inputs, weights = (torch.randn(12, width, generator=generator, dtype=torch.float64) for width in (32, 2))
    routing = Routing(inputs, torch.arange(24).reshape(12, 2) % 4, weights)
    found = module(*routing.tensors())
    torch.testing.assert_close(found, mixture_output(experts, routing), rtol=1e-12, atol=1e-12)
    folded = copy.deepcopy(model)
    KIND.fold(folded, sites[0])
    stock: Any = base_model(folded).get_submodule(sites[0].holder)
    assert not isinstance(stock, ScaledExperts)
    expected = stock(*routing.tensors())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    found.backward(cotangent)
    expected.backward(cotangent)
    for site, expert in zip(sites, experts, strict=True):
        ones = torch.ones(24, dtype=torch.float64)
        scales = {"gate": expert.input_scale, "up": ones, "down": expert.output_scale}
        for weight in site.weights:
            last = weight.name.rpartition(".")[2]
            if getattr(expert, weight.field) is None:
                continue
            ours, theirs = (weight.view(gradient(one, last)) for one in (module, stock))
            scale = ones[:1] if weight.field == "down_bias" else scales[weight.field.removesuffix("_bias")]
            theirs = theirs * (scale[:, None] if weight.field in ("gate", "up") else scale)
            assert ours.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def gradient(module: nn.Module, name: str) -> torch.Tensor:
    found = module.get_parameter(name).grad
    assert found is not None
    return found


class PlainExperts(nn.Module):
    """Two experts without a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Parameter(torch.ones(2, 3, 4)), nn.Parameter(torch.ones(2, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x @ up.T).relu() @ down.T for up, down in zip(self.up_proj, self.down_proj, strict=True)])


def test_experts_without_a_gate_have_the_first_diagonal_before_their_activation():
    places = ScaledTensors("down_proj", "up_proj", first_half=False, in_turns=False, neuron_axis=2)
    kind: Any = scaled_class(PlainExperts, places)
    module, scales = kind.__new__(kind), torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    module.__dict__.update(vars(PlainExperts()))
    for name, scale in zip(BITS, scales, strict=True):
        module.register_buffer(name, scale.view(torch.int32))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    experts = [
        MLP(torch.ones(3, 4), torch.ones(4, 3), torch.relu, input_scale=first, output_scale=second)
        for first, second in zip(*scales, strict=True)
    ]
    torch.testing.assert_close(module(x), torch.stack([forward(one, x) for one in experts]))


def test_all_implementations_of_the_experts_agree():
    model = matched("mixtral")
    logits = []
    for name in ("eager", "batched_mm", "grouped_mm"):
        model.config._experts_implementation = name
        logits.append(mixture_logits(model))
    torch.testing.assert_close(logits[1], logits[0])
    torch.testing.assert_close(logits[2], logits[0])


def test_copies_are_matched_experts_too():
    model = matched("mixtral")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert len(scaled_modules(other)) == 3
        torch.testing.assert_close(mixture_logits(other), mixture_logits(model))


@pytest.mark.parametrize("name", ["mixtral", "switch"])
@pytest.mark.parametrize("per", ["neuron", "layer"])
def test_a_match_keeps_the_outputs_and_brings_the_kernels_of_the_experts_near_the_original_ones(name, per):
    """The kernel of a mixture is the sum over its experts, each on the samples that reach it."""
    original: Any = switch_model() if name == "switch" else mixture_model(name)
    batches = PAIRS if name == "switch" else TEXTS
    plain, rescaled = copy.deepcopy(original), copy.deepcopy(original)
    options: Any = {"keep_ratio": 0.5, "calibration": batches}
    mlpfusion.compress(plain, mlpfusion.NTKMatch(refine_epochs=0, match="none"), **options)
    record = mlpfusion.compress(rescaled, mlpfusion.NTKMatch(refine_epochs=0, match=per), **options)
    with torch.no_grad():
        logits = [model(**batches[0], use_cache=False).logits for model in (plain, rescaled)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    for site in record.sites:
        assert ("mean_input_scale" in site.metrics) == bool(site.metrics["tokens"])
    sites = sites_of(original)
    sites = [site for site in sites if site.expert is not None]
    before, *cut = (trace_calibration(model, sites, batches, 0) for model in (original, plain, rescaled))
    errors = list[list[float]]()
    for site in sites:
        assert site.mixture is not None
        found = []
        for model, after in zip((plain, rescaled), cut, strict=True):
            common = common_traces(before.mixtures[site.mixture], after.mixtures[site.mixture], site)
            if common is not None:
                blocks = read_block(original, site), read_block(model, site)
                kernels = [adam_kernel(block, trace).total for block, trace in zip(blocks, common, strict=True)]
                found.append(kernel_error(*kernels).relative)
        errors.append(found)
    reached = [one for one in errors if one]
    assert len(reached) > len(sites) / 2
    assert all(after < before for before, after in reached)


def read_block(model: Any, site: Site) -> MLP:
    """The expert with its scales in fields of their own."""
    return narrow.read_block(model, site) if site.stack.layout is None else read_mlp(model, site)


def test_one_tracing_serves_a_match_with_the_same_bytes():
    models = [mixture_model("mixtral") for _ in range(2)]
    traced = trace_calibration(models[0], sites_of(models[0]), TEXTS, 0)
    for model, calibration in zip(models, (traced, TEXTS), strict=True):
        mlpfusion.compress(model, METHOD, keep_ratio=0.5, calibration=calibration)
    assert all(map(torch.equal, models[0].state_dict().values(), models[1].state_dict().values()))


def test_a_match_after_blocks_that_saw_the_compressed_ones_before_them_keeps_their_outputs():
    plain, rescaled = mixture_model("deepseek_v3"), mixture_model("deepseek_v3")
    options: Any = {"keep_ratio": 0.5, "calibration": TEXTS, "sequential": True, "stacks": "all"}
    mlpfusion.compress(plain, mlpfusion.NTKMatch(refine_epochs=0, match="none"), **options)
    mlpfusion.compress(rescaled, METHOD, **options)
    torch.testing.assert_close(mixture_logits(plain), mixture_logits(rescaled), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("choice", ["energy", "fusion"])
@pytest.mark.parametrize("match", ["neuron", "none"])
def test_an_expert_that_no_token_reaches_has_ones(choice, match, tmp_path):
    """One that is fused with P folded in, beside others with scales."""
    model = mixture_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, output: (*output[:2], output[2] % 2 + 2))
    method = mlpfusion.NTKMatch(refine_epochs=0, choice=choice, match=match)
    mlpfusion.compress(model, method, keep_ratio=0.5, calibration=TEXTS)
    entries = model.config.mlp_fusion["sites"].values()
    has_scales = choice == "fusion" or match == "neuron"
    assert {entry["scale"] for entry in entries} == {"matched" if has_scales else "none"}
    for module in scaled_modules(model):
        scales = [module.get_buffer(name).view(torch.float32) for name in BITS]
        assert all(torch.equal(scale[:2], torch.ones_like(scale[:2])) for scale in scales)
        assert not torch.equal(scales[1][2:], torch.ones_like(scales[1][2:]))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(map(torch.equal, diagonals(loaded), diagonals(model)))


def test_the_samples_of_a_kernel_reach_the_expert_in_both_runs():
    inputs, weights = torch.arange(6.0)[:, None], torch.ones(6, 1)
    samples = torch.tensor([0, 0, 1, 1, 2, 2])
    before = RoutedTokens(Routing(inputs, torch.tensor([[0], [0], [0], [1], [1], [1]]), weights), samples, inputs)
    after = RoutedTokens(Routing(10 + inputs, torch.tensor([[1], [1], [0], [0], [0], [0]]), weights), samples, inputs)
    model = mixture_model("mixtral")
    first, second, third, _ = by_holder(sites_of(model))["layers.0.mlp.experts"]
    found = common_traces(before, after, first)
    assert found is not None
    assert [trace.inputs.flatten().tolist() for trace in found] == [[2.0], [12.0, 13.0]]
    assert [trace.lengths.tolist() for trace in found] == [[1], [2]]
    assert common_traces(before, after, second) is None  # samples 1 and 2 before, 0 after
    assert common_traces(before, after, third) is None


def test_lora_on_the_tensors_of_matched_experts_is_merged_and_leaves_the_diagonals(tmp_path):
    model = matched("mixtral", width=8)
    cut = copy.deepcopy(model.state_dict())
    tuned = trained_by_lora(model, IDS[0, :4, :12], rate=0.2)
    logits = mixture_logits(tuned)
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(matched("mixtral", width=8), tmp_path)
    torch.testing.assert_close(mixture_logits(loaded), logits)
    merged: Any = loaded.merge_and_unload()
    torch.testing.assert_close(mixture_logits(merged), logits, rtol=1e-4, atol=1e-4)
    for key, tensor in merged.state_dict().items():
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            assert all(not torch.equal(one, old) for one, old in zip(tensor, cut[key], strict=True))
        if key.endswith("scale_bits"):
            assert torch.equal(tensor, cut[key])


def test_a_training_step_with_checkpointing_reaches_every_tensor_and_no_diagonal():
    model = matched("mixtral").train()
    # the name before transformers 5.16 or so
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model(input_ids=IDS[0], labels=IDS[0]).loss.backward()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            assert parameter.grad.abs().sum() > 0
    assert not any("scale" in name for name, _ in model.named_parameters())


def test_experts_that_take_gate_and_up_together_are_refused():
    words = "must have no second step for experts .*, which take gate and up together, as ntk-match with `match=none`"
    model = mixture_model("gpt_oss")
    with pytest.raises(InputError, match=words):
        mlpfusion.compress(model, METHOD, keep_ratio=0.5, calibration=TEXTS)
    assert not hasattr(model.config, "mlp_fusion")


def saved(folder: Path) -> Path:
    matched("mixtral").save_pretrained(folder)
    return folder


def in_file(folder: Path, name: str) -> str:
    """The name of the tensor in the file that ends so."""
    (found,) = [key for key in load_file(folder / "model.safetensors") if "layers.1." in key and key.endswith(name)]
    return found


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", BITS)
def test_a_diagonal_that_is_not_positive_is_refused(name, value, tmp_path):
    key = in_file(saved(tmp_path), name)
    weights = load_file(tmp_path / "model.safetensors")
    weights[key][2, 0] = torch.tensor(value).view(torch.int32)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scale = name.removesuffix("_bits")
    with pytest.raises(InputError, match=f"the `{scale}` at layers.1.mlp.experts must be positive and finite, got"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_diagonal_is_refused(tmp_path):
    key = in_file(saved(tmp_path), BITS[1])
    weights = load_file(tmp_path / "model.safetensors")
    del weights[key]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the checkpoint must hold the scales of every scaled block.*layers.1"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_key_that_names_other_scales_is_refused(tmp_path):
    change_key(saved(tmp_path), lambda key: key["sites"]["layers.1.mlp.experts"].update(scale="cluster-sizes"))
    with pytest.raises(InputError, match="must hold the scales of every scaled block and no other"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    change_key(tmp_path, lambda key: key["sites"]["layers.1.mlp.experts"].update(scale="cubic"))
    with pytest.raises(InputError, match="must be one of none, cluster-sizes, matched, got 'cubic'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
