"""Which stacks of a model are cut: those that read text, or those that the user names."""

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from detected import detected_config, detected_model, detected_outputs
from pico import pico_config, pico_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import mlpfusion
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.checkpoint.read import empty_model
from mlpfusion.cli import main
from mlpfusion.compression.preview.inspection import inspect_checkpoint
from mlpfusion.errors import InputError
from mlpfusion.options.mlps import MLPOptions
from mlpfusion.sites.detect import find_architecture, left_out
from mlpfusion.sites.parts import modality
from mlpfusion.sites.sites import base_model
from mlpfusion.sites.table import Architecture, Stack

TEXT, VISION = "text_model.encoder.layers.{}", "vision_model.encoder.layers.{}"


def layers(name: str, stacks: str | None = None) -> list[str]:
    return [stack.layer for stack in find_architecture(empty_model(detected_config(name)), stacks).stacks]


@pytest.mark.parametrize(
    ("stacks", "expected"),
    [
        (None, [TEXT]),
        ("text", [TEXT]),
        ("vision", [VISION]),
        ("all", [TEXT, VISION]),
        ("vision_model.*", [VISION]),
        ("*encoder*", [TEXT, VISION]),
        ("vision, text_*", [TEXT, VISION]),
    ],
)
def test_a_word_or_a_pattern_chooses(stacks, expected):
    assert layers("clip", stacks) == expected


@pytest.mark.parametrize("stacks", ["audio", "vision_model", "", "text,,vision", "text,sound", "*.mlp", 5])
def test_a_choice_without_a_stack_is_refused_with_those_that_there_are(stacks):
    with pytest.raises(
        InputError, match=r"`stacks` must be text, vision, audio, experts, shared, dense, all, or a pattern"
    ) as caught:
        layers("clip", stacks)
    assert f"{TEXT} (text), {VISION} (vision)" in str(caught.value)


def test_all_are_meant_where_none_reads_text():
    assert len(layers("swin")) == 2
    assert layers("swin") == layers("swin", "vision")
    assert layers("wav2vec2-bert") == layers("wav2vec2-bert", "audio")


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("whisper", {"encoder.layers.{}": "audio", "decoder.layers.{}": "audio"}),  # one config: one model of sound
        ("llava", {"vision_tower.encoder.layers.{}": "vision", "language_model.layers.{}": "text"}),
        ("t5gemma", {"encoder.layers.{}": "text", "decoder.layers.{}": "text"}),
        ("qwen3_vl", {"visual.blocks.{}": "vision", "language_model.layers.{}": "text"}),
    ],
)
def test_a_stack_reads_what_its_part_does(name, reads):
    base = base_model(empty_model(detected_config(name)))
    assert {layer: modality(base, layer) for layer in layers(name, "all")} == reads


def test_layers_are_counted_in_each_stack():
    model = detected_model("clip")
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks="all", layers="last:1")
    assert [site.path for site in record.sites] == ["text_model.encoder.layers.1", "vision_model.encoder.layers.0"]
    assert record.left_out == ()


@pytest.mark.parametrize("name", ["clip", "llava", "qwen3_vl"])
def test_the_other_tower_is_cut_alone_and_proven_by_a_run_of_its_own(name, tmp_path):
    model = detected_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks="vision")
    assert len(record.sites) == 1
    assert record.left_out == tuple(layers(name))
    after = model.state_dict()
    changed = {key for key in before if key not in after or not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith(record.sites[0].path) for key in changed)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert {key: tuple(tensor.shape) for key, tensor in again.state_dict().items()} == {
        key: tuple(tensor.shape) for key, tensor in after.items()
    }


def test_a_part_of_the_config_names_its_entries_from_itself(tmp_path):
    model = detected_model("colpali")  # its base model is a PaliGemma, with the config `vlm_config`
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks="all")
    outputs = detected_outputs(model, "colpali")
    model.save_pretrained(tmp_path / "cut")
    cut = type(model).from_pretrained(tmp_path / "cut").eval()
    assert torch.equal(detected_outputs(cut, "colpali"), outputs)
    if "text_config" in cut.config.sub_configs:
        pytest.skip("transformers 5.14 keeps a second text config beside that of the part: no width can be said")
    mlpfusion.fold(cut).save_pretrained(tmp_path / "folded")
    config = AutoConfig.from_pretrained(tmp_path / "folded").vlm_config
    assert (config.text_config.intermediate_size, config.vision_config.intermediate_size) == (28, 12)
    assert not hasattr(config, "mlp_fusion")
    folded = type(model).from_pretrained(tmp_path / "folded").eval()
    torch.testing.assert_close(detected_outputs(folded, "colpali"), outputs)


def test_a_row_of_the_table_is_narrowed_too(tmp_path):
    model: Any = pico_model("bart")
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks="decoder.*")
    assert {site.path.partition(".")[0] for site in record.sites} == {"decoder"}
    assert record.left_out == ("encoder.layers.{}",)
    assert record.row is None
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).decoder.layers[0].fc1.out_features == record.sites[0].width


def test_a_stack_that_this_class_has_not_is_no_crash():
    model: Any = AutoModelForCausalLM.from_config(pico_config("bart"))
    record = mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5, stacks="decoder.*")
    assert {site.path.partition(".")[0] for site in record.sites} == {"decoder"}
    by_hand = Architecture((Stack("elsewhere.{}", "up", "down", "act"),))
    with pytest.raises(InputError, match="`architecture` must name layers of BertModel, got elsewhere"):
        mlpfusion.compress(pico_model("bert"), mlpfusion.Fusion(), width=4, architecture=by_hand, stacks="all")


def test_runs_on_other_stacks_are_other_runs(tmp_path):
    pico_model("bart").save_pretrained(tmp_path)
    usual, chosen = (open_checkpoint(str(tmp_path), mlps=MLPOptions(stacks=stacks)) for stacks in (None, "encoder.*"))
    assert usual.row_for_identity() == {}
    assert [stack["layer"] for stack in chosen.row_for_identity()["architecture"]["stacks"]] == ["encoder.layers.{}"]


def test_a_row_by_hand_leaves_nothing_out():
    model = detected_model("llava")
    row = find_architecture(model)
    assert left_out(model, row) == ("vision_tower.encoder.layers.{}",)
    by_hand = Architecture((Stack("elsewhere.{}", "up", "down", "act"),))
    assert left_out(model, by_hand) == ()


@pytest.fixture
def clip(tmp_path) -> str:
    detected_model("clip").save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def test_compress_and_inspect_say_what_is_left_out(clip, tmp_path):
    shown = CliRunner().invoke(main, ["inspect", clip, "--stacks", "vision", "--json"])
    found = json.loads(shown.stdout)
    assert [stack["layers"] for stack in found["stacks"]] == [VISION]
    assert found["left_out"] == [TEXT]
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["compress", clip, str(out), "--keep-ratio", "0.5", "--stacks", "vision"])
    assert result.exit_code == 0, result.output
    assert (
        f"Left out: {TEXT}. `--stacks` chooses: text, vision, audio, experts, shared, dense, all, or a pattern."
        in result.stdout
    )
    assert [stack.layers for stack in inspect_checkpoint(str(out)).stacks] == [VISION]


def test_a_wrong_choice_is_one_line_and_leaves_nothing_behind(clip, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["compress", clip, str(out), "--keep-ratio", "0.5", "--stacks", "sound"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "got 'sound'" in result.stderr
    assert not out.exists()
