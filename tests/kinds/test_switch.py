"""Switch Transformers: every expert is a module, so its MLP is an ordinary site of a model with a mixture."""

import copy
import json
from typing import Any

import pytest
import torch
import yaml
from command import call
from mixtures import switch_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM

import mlpfusion
from mlpfusion.errors import InputError
from mlpfusion.mlp import forward
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.proof.row_check import check_row
from mlpfusion.sites.sites import base_model, find_sites, read_mlp
from mlpfusion.sites.table import ARCHITECTURES, architecture_to_dict

EXPERTS = [
    f"{side}.block.1.layer.{layer}.mlp.experts.expert_{number}"
    for side, layer in (("encoder", 1), ("decoder", 2))
    for number in range(4)
]
DENSE = [f"{side}.block.{number}" for side in ("encoder", "decoder") for number in (0, 2)]
INPUTS = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=INPUTS, decoder_input_ids=INPUTS, use_cache=False).logits


def test_every_expert_is_read_as_the_model_computes_it():
    model = switch_model()
    sites = find_sites(model, ARCHITECTURES["switch_transformers"])
    assert sorted(site.path for site in sites) == sorted(EXPERTS + DENSE)
    for site in sites:
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
        base = base_model(model)
        module = base.get_submodule(site.path if site.expert is not None else site.module_path("up").rpartition(".")[0])
        torch.testing.assert_close(forward(read_mlp(model, site), x), module(x))


@pytest.mark.parametrize("method", [mlpfusion.Fusion(), mlpfusion.SVD(), mlpfusion.Magnitude()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_experts_are_cut_by_every_kind_saved_and_loaded_to_the_bit(method, dtype, tmp_path):
    model = switch_model(dtype)
    before = logits(model)
    record = mlpfusion.compress(model, method, keep_ratio=0.5)
    assert sorted(site.path for site in record.sites) == sorted(EXPERTS)
    assert record.left_out == ("encoder.block.{}.layer.1.mlp.wi", "decoder.block.{}.layer.2.mlp.wi")
    assert not torch.allclose(logits(model), before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(logits(loaded), logits(model))


def test_the_command_cuts_them_too(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    switch_model().save_pretrained(source)
    call("compress", source, out, "--keep-ratio", "0.5")
    model = switch_model()
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    state = AutoModelForSeq2SeqLM.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("stacks", "paths"), [("all", EXPERTS + DENSE), ("dense", DENSE), ("encoder.*", None)])
def test_other_mlps_are_cut_by_choice(stacks, paths):
    record = mlpfusion.compress(switch_model(), mlpfusion.NeuronPruning(), keep_ratio=0.5, stacks=stacks)
    wanted = paths or [path for path in EXPERTS + DENSE if path.startswith("encoder")]
    assert sorted(site.path for site in record.sites) == sorted(wanted)


def test_layers_count_those_that_have_experts():
    record = mlpfusion.compress(switch_model(), mlpfusion.Fusion(), keep_ratio=0.5, layers="last:1")
    assert {site.layer for site in record.sites} == {1}
    with pytest.raises(InputError, match="`layers` must name a layer with an MLP, which 1 have, got '0'"):
        mlpfusion.compress(switch_model(), mlpfusion.Fusion(), keep_ratio=0.5, layers="0")


def test_lora_trains_on_narrow_experts():
    model = switch_model()
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["wi", "wo"]))
    tuned(input_ids=INPUTS, labels=INPUTS).loss.backward()
    gradients = [p.grad for name, p in tuned.named_parameters() if "experts" in name]
    assert any(one is not None and one.abs().sum() > 0 for one in gradients)


def test_a_folded_model_computes_the_same_and_keeps_its_key():
    """Experts and dense layers share one entry of the config, so experts alone are no stock model."""
    model = switch_model()
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    expected = logits(copy.deepcopy(model))
    with pytest.warns(UserWarning, match="still needs `import mlpfusion`"):
        mlpfusion.fold(model)
    torch.testing.assert_close(logits(model), expected)
    assert {entry["scale"] for entry in model.config.mlp_fusion["sites"].values()} == {"none"}


BATCHES = [
    {"input_ids": ids, "decoder_input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for ids in torch.randint(3, 60, (2, 8, 17), generator=torch.Generator().manual_seed(1))
]


@pytest.mark.parametrize("stacks", [None, "all"])
def test_experts_are_calibrated_on_the_tokens_that_reach_them(stacks, tmp_path):
    model = switch_model()
    method = mlpfusion.NTKMatch(match="none", refine_epochs=0)
    record = mlpfusion.compress(model, method, keep_ratio=0.5, calibration=BATCHES, stacks=stacks)
    experts = [site for site in record.sites if "expert_" in site.path]
    assert len(experts) == 8
    reached = [site for site in experts if site.metrics["tokens"]]
    assert all(site.metrics["output_error_refit"] < site.metrics["output_error_chosen"] for site in reached)
    for side in ("encoder", "decoder"):  # one expert a token, and none is dropped
        assert sum(site.metrics["tokens"] for site in experts if site.path.startswith(side)) == 2 * 8 * 17
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (mlpfusion.WhitenedSVD(), "`method` must be one that narrows for experts"),
    ],
)
def test_a_calibration_that_experts_cannot_have_is_refused(method, message):
    with pytest.raises(InputError, match=message):
        mlpfusion.compress(switch_model(), method, keep_ratio=0.5, calibration=BATCHES)


def test_tokens_beyond_the_capacity_of_an_expert_reach_none():
    model = switch_model()
    for module in model.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 0
    method = mlpfusion.NTKMatch(match="none", refine_epochs=0)
    record = mlpfusion.compress(model, method, keep_ratio=0.5, calibration=BATCHES)
    assert {site.metrics["tokens"] for site in record.sites} == {0}


def test_a_run_proves_the_experts_of_the_row():
    model = switch_model()
    check_row(model, find_sites(model, ARCHITECTURES["switch_transformers"]))
    experts = model.encoder.block[1].layer[1].mlp.experts
    experts.register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(
        InputError, match="must describe what the experts compute, it does not at encoder.block.1.layer"
    ):
        check_row(model, find_sites(model, ARCHITECTURES["switch_transformers"]))


def test_the_row_of_the_table_is_that_of_the_experts_unless_others_are_asked_for():
    assert all(stack.is_of_experts for stack in find_architecture(switch_model()).stacks)


def test_inspect_and_compress_take_the_experts_and_a_row_file_all_that_it_names(tmp_path):
    source, out, row = tmp_path / "source", tmp_path / "out", tmp_path / "row.yaml"
    switch_model().save_pretrained(source)
    assert "Left out: encoder.block.{}.layer.1.mlp.wi" in call("inspect", source).stdout
    row.write_text(yaml.safe_dump(architecture_to_dict(ARCHITECTURES["switch_transformers"])))
    call("compress", source, out, "--keep-ratio", "0.5", "--architecture", row)
    record = json.loads((out / "mlp_fusion_record.json").read_text())
    assert sorted(site["path"] for site in record["sites"]) == sorted(EXPERTS + DENSE)
