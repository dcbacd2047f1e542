import json

import pytest
import torch
import yaml
from click.testing import CliRunner
from detected import EXPERTS, detected_config
from pico import PICO, pico_config, pico_model
from transformers import AutoConfig, AutoModel

import mlpfusion
from mlpfusion.cli import main
from mlpfusion.compression.preview.inspection import inspect_checkpoint
from mlpfusion.errors import InputError
from mlpfusion.options.selection import Selection
from mlpfusion.sites.table import Architecture, Stack

STABLELM = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 67,
}  # fmt: skip


@pytest.mark.parametrize("name", PICO)
def test_the_cut_that_is_shown_is_the_cut_that_compress_makes(name, tmp_path):
    model = pico_model(name)
    model.save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path), Selection("last:2", 0.3))
    record = mlpfusion.compress(model, mlpfusion.NeuronPruning(), layers="last:2", keep_ratio=0.3)
    assert shown.known
    assert shown.visited_share == 1.0
    assert shown.cut is not None
    assert (shown.parameters, shown.cut.parameters) == (record.original.parameters, record.compressed.parameters)
    assert shown.cut.widths == tuple(site.width for site in record.sites)


def test_only_the_config_is_needed(tmp_path):
    pico_config("llama").save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path))
    assert shown.stacks[0].gated
    assert shown.stacks[0].activation == "SiLUActivation"
    assert shown.mlp_parameters == 3 * 3 * 32 * 56


def test_a_compressed_checkpoint_is_shown_as_such(tmp_path):
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), layers="last:2", width=14)
    model.save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path))
    assert shown.stacks[0].widths == (56, 14, 14)
    assert shown.stacks[0].activation == "GELUActivation"
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert "Compressed by mlpfusion: method fusion, seed 0, 2 blocks." in result.stdout


def test_inspect_prints_for_people_and_for_programs(tmp_path):
    pico_model("gpt2").save_pretrained(tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path), "--layers", "1-2"])
    assert result.exit_code == 0
    for text in ("GPT2Model, model type gpt2", "h.{}", "Conv1D", "100.0 %", "in layers 1-2 (2 MLPs, width 14)"):
        assert text in result.stdout
    data = json.loads(CliRunner().invoke(main, ["inspect", str(tmp_path), "--json"]).stdout)
    assert data["stacks"][0]["linear"] == "Conv1D"


def test_a_type_without_a_row_goes_from_inspect_to_reload_with_or_without_a_file(tmp_path):
    source, out, row, by_file = (tmp_path / name for name in ("source", "out", "row.yaml", "by-file"))
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("stablelm", **STABLELM)).save_pretrained(source)
    shown = inspect_checkpoint(str(source))
    assert not shown.known
    assert shown.proposed_row is not None
    assert (
        "stablelm has no row in the table: the MLPs were found by their shapes"
        in CliRunner().invoke(main, ["inspect", str(source)]).stdout
    )
    done = CliRunner().invoke(main, ["compress", str(source), str(out), "--width", "14"])
    assert done.exit_code == 0
    line = "proven by a run: layers.{}: mlp.gate_proj, mlp.up_proj -> mlp.act_fn -> mlp.down_proj"
    assert line in " ".join(done.stdout.split())
    assert json.loads((out / "mlp_fusion_record.json").read_text())["row"] == yaml.safe_load(shown.proposed_row)
    row.write_text(shown.proposed_row)
    arguments = ["compress", str(source), str(by_file), "--width", "14", "--architecture", str(row)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert (out / "model.safetensors").read_bytes() == (by_file / "model.safetensors").read_bytes()
    loaded = AutoModel.from_pretrained(out)
    assert loaded.layers[1].mlp.gate_proj.weight.shape == (14, 32)
    assert int(loaded.layers[1].mlp.act_fn.output_scale.sum()) == 56


def test_what_a_composite_model_has_beside_its_text_model_is_named(tmp_path):
    detected_config("llava").save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path))
    assert [stack.layers for stack in shown.stacks] == ["language_model.layers.{}"]
    assert shown.left_out == ("vision_tower.encoder.layers.{}",)
    output = CliRunner().invoke(main, ["inspect", str(tmp_path)]).stdout
    assert "Left out: vision_tower.encoder.layers.{}. `--stacks` chooses" in output


def test_a_model_without_a_recognisable_mlp_is_told_so(tmp_path):
    config = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=67, state_size=4)
    config.save_pretrained(tmp_path)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 0
    assert "No MLP was found" in result.stdout


@pytest.mark.parametrize("name", EXPERTS)
def test_a_mixture_of_experts_is_shown_and_proposed_for_a_cut(name, tmp_path):
    detected_config(name).save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path))
    assert shown.expert_parameters > 0
    output = CliRunner().invoke(main, ["inspect", str(tmp_path)]).stdout
    share = 100 * shown.expert_parameters / shown.parameters
    experts, width = (2, 56) if name in ("switch_transformers", "nllb-moe") else (4, 24 if "qwen" in name else 56)
    assert [(one.experts, one.width) for one in shown.experts] == [(experts, width)]
    of = f"{shown.experts[0].mixtures} mixtures of {experts} experts of width {width}"
    assert f"({share:.1f} %) are in experts: {of}." in output
    assert "Write a row by hand" not in output
    if name == "nllb-moe":
        assert shown.visited_share < 1
        assert "They are kept in a way that is not supported." in output
        assert "100.0 %" not in output
    else:
        assert shown.mlp_parameters == shown.expert_parameters
        assert shown.visited_share == 1
        assert all(stack.layers.count("{}") == 2 for stack in shown.stacks)
        assert bool(shown.left_out) == (name != "mixtral")


def test_experts_that_are_kept_in_another_way_are_refused_and_so_are_the_mlps_beside_them():
    model = AutoModel.from_config(detected_config("nllb-moe"))
    for stacks in (None, "dense"):
        with pytest.raises(InputError, match="must keep its experts in a way that a row can name, 2 mixtures from enc"):
            mlpfusion.compress(model, mlpfusion.Fusion(), width=14, stacks=stacks)
    assert not hasattr(model.config, "mlp_fusion")


def test_a_row_of_shared_experts_alone_says_that_it_leaves_the_others_out():
    model = AutoModel.from_config(detected_config("qwen2_moe"))
    mlp = "mlp.shared_expert"
    row = Architecture((Stack("layers.{}", f"{mlp}.up_proj", f"{mlp}.down_proj", f"{mlp}.act_fn", f"{mlp}.gate_proj",
                              "shared_expert_intermediate_size"),))  # fmt: skip
    record = mlpfusion.compress(model, mlpfusion.Fusion(), width=14, architecture=row)
    assert record.left_out == ("layers.{}.mlp.experts.{}",)
    assert [site.path for site in record.sites] == ["layers.0", "layers.1"]


def test_no_number_is_hidden_in_a_narrow_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    AutoConfig.for_model("qwen2_5_vl").save_pretrained(tmp_path)
    output = CliRunner().invoke(main, ["inspect", str(tmp_path)]).stdout
    assert "29,568" in output
    assert "language_model.layers.{} " in output


def test_the_text_part_of_a_composite_model_is_found(tmp_path):
    detected_config("gemma3").save_pretrained(tmp_path)
    shown = inspect_checkpoint(str(tmp_path))
    assert [stack.layers for stack in shown.stacks] == ["language_model.layers.{}"]
    assert CliRunner().invoke(main, ["inspect", str(tmp_path)]).exit_code == 0
