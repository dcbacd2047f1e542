"""A row of one's own is tried out on the model before anything is changed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from command import call
from detected import DETECTED, detected_model
from pico import pico_model

import mlpfusion
from mlpfusion.compression.provenance import check_source
from mlpfusion.errors import InputError
from mlpfusion.measure.comparison import compare_methods
from mlpfusion.sites.detect import detect_architecture
from mlpfusion.sites.proof.row_check import MadeUpRun
from mlpfusion.sites.sites import find_sites, site_module
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.traces import Seen


@pytest.mark.parametrize("name", DETECTED)
def test_a_model_type_without_a_row_needs_no_flag(name):
    """Its MLPs are found by their shapes, and a run proves them: which of two maps is `gate`, say."""
    model = detected_model(name)
    record = mlpfusion.compress(model, mlpfusion.NeuronPruning(), keep_ratio=0.5)
    assert all(2 * site.width == site.original_width for site in record.sites)
    assert record.row is not None


def test_a_row_that_confuses_gate_and_up_is_refused_in_an_encoder_decoder():
    model = detected_model("mt5")
    row = detect_architecture(model)
    assert row is not None
    confused = Architecture(tuple(replace(stack, up=stack.gate or "", gate=stack.up) for stack in row.stacks))
    with pytest.raises(InputError, match=r"it does not at encoder.block.0: is `gate` right, or is there more"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=confused)
    assert not hasattr(model.config, "mlp_fusion")


def test_a_row_that_joins_the_halves_of_two_mlps_is_refused(monkeypatch):
    """They may run on different numbers of tokens, as those of a Q-Former do."""
    model = detected_model("mpnet")
    (site, *_) = find_sites(model, mlpfusion_row(model))
    seen = Seen([torch.ones(1, 5, 32)], [torch.ones(1, 3, 32)])
    run = MadeUpRun({site.path: seen}, {site_module(model, site, "activation"): 0}, {})
    monkeypatch.setattr("mlpfusion.sites.proof.row_check.made_up_runs", lambda _model, _sites: [run])
    with pytest.raises(InputError, match=f"the row must describe what the model computes, it does not at {site.path}"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14)


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_weights_whose_forward_pass_overflows_are_refused_in_one_line(value):
    model = detected_model("mbart")
    row = detect_architecture(model)
    with torch.no_grad():
        model.encoder.layers[1].fc2.weight[0] = value
    with pytest.raises(InputError, match="must give finite numbers for made-up inputs, .*got NaN or Inf at"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)


def test_another_row_for_a_model_type_of_the_table_is_refused():
    model = pico_model("bert")
    row = mlpfusion_row(model, width_key="hidden_size")
    with pytest.raises(InputError, match="`architecture` must be that of the table for bert"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=mlpfusion_row(model))


def mlpfusion_row(model: object, **changes: str) -> Architecture:
    row = detect_architecture(model)  # pyright: ignore[reportArgumentType]
    assert row is not None
    return Architecture(tuple(replace(stack, **changes) for stack in row.stacks))


def test_a_teacher_of_another_type_is_named_as_that():
    student = pico_model("bert")
    mlpfusion.compress(student, mlpfusion.Fusion(), width=14)
    names = ("the teacher", "the student")
    with pytest.raises(InputError, match="`teacher` must be the source of the student, a bert, got .*, a distilbert"):
        check_source(pico_model("distilbert"), student, names, "teacher")


def test_methods_are_compared_on_a_model_type_without_a_row():
    model = detected_model("mpnet")
    ids = torch.arange(3, 17).reshape(2, 7)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    options: dict[str, Any] = {"layers": "0", "keep_ratio": 0.5, "seeds": [0]}
    (found,) = compare_methods(model, [mlpfusion.NeuronPruning()], batches, **options)
    assert found.width == 28


def test_a_model_that_does_not_run_on_made_up_inputs_is_refused():
    model = detected_model("mpnet")
    model.forward = lambda input_ids: model.encoder(input_ids + "a")
    with pytest.raises(InputError, match="`model` must run on made-up inputs, .*a MPNetModel does not: "):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14)


@pytest.mark.parametrize("name", ["swin", "gemma3"])
def test_a_model_whose_mlps_have_all_run_runs_on_nothing_more(name):
    """Swin keeps the size of its windows from run to run, and would keep that of a stranger's image."""
    model = detected_model(name)
    runs = []
    model.register_forward_pre_hook(lambda _model, _args: runs.append(1))
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    assert runs == [1]


def test_an_activation_that_something_else_uses_too_is_refused():
    """A diagonal that is put into it would reach the other place as well."""
    model = detected_model("mbart")
    layer: Any = model.encoder.layers[0]
    layer.self_attn_layer_norm = torch.nn.Sequential(layer.self_attn_layer_norm, layer.activation_fn)
    with pytest.raises(InputError, match=r"must serve MLPs alone, encoder.layers.0.activation_fn runs elsewhere too"):
        mlpfusion.compress(model, mlpfusion.Fusion(), width=14)


@pytest.mark.parametrize("command", ["inspect", "compress", "compare", "dynamics", "reproduce"])
def test_every_command_that_looks_for_a_row_takes_one(command):
    told = call(command, "--help").stdout
    assert "--architecture FILE" in told
    assert "--stacks A[,B..]" in told
