"""The command line: what it prints, what it refuses, and that it leaves nothing behind when it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import call, refused
from pico import pico_model, pico_outputs
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import mlpfusion


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "model"
    pico_model("bert").save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    return folder


def test_compress_writes_a_complete_folder(checkpoint, tmp_path):
    out = tmp_path / "out"
    result = call("compress", checkpoint, out, "--layers", "last:2", "--keep-ratio", 0.25, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert {file.name for file in out.iterdir()} == {
        "config.json", "model.safetensors", "mlp_fusion_record.json", "mlp_fusion_files.json", "README.md", "vocab.txt",
        "mlp_fusion_chart.svg", "report.html",
    }  # fmt: skip
    expected = AutoModel.from_pretrained(checkpoint)
    mlpfusion.compress(expected, mlpfusion.Fusion(), layers="last:2", keep_ratio=0.25, seed=3)
    assert torch.equal(pico_outputs(AutoModel.from_pretrained(out), "bert"), pico_outputs(expected, "bert"))
    record = json.loads((out / "mlp_fusion_record.json").read_text())
    assert record["recipe"]["seed"] == 3
    card = (out / "README.md").read_text()
    assert "encoder.layer.2 | 56 | 14" in card
    assert str(tmp_path) not in card + json.dumps(record)
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in out.iterdir())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("method", "size"),
    [("svd", "rank 5"), ("magnitude", "% non-zero"), ("ntk-sap", "% non-zero"), ("sketch", "14"), ("mmd", "14")],
)
def test_every_kind_of_method_goes_through_the_same_flags(method, size, checkpoint, tmp_path):
    out = tmp_path / "out"
    result = call("compress", checkpoint, out, "--method", method, "--layers", "last:2", "--keep-ratio", 0.25)
    assert result.exit_code == 0, result.output
    assert size in result.stdout
    assert size in (out / "README.md").read_text()
    assert torch.isfinite(pico_outputs(AutoModel.from_pretrained(out), "bert")).all()
    assert "Compressed by mlpfusion" in call("inspect", out).output


def test_a_width_for_a_method_that_keeps_the_width_is_refused(checkpoint, tmp_path):
    line = refused("compress", checkpoint, tmp_path / "out", "--method", "svd", "--width", 20)
    assert line == "Error: `--width` must be left out for svd, which keeps the width: give `--keep-ratio`"


def test_compress_prints_the_record_as_json(checkpoint, tmp_path):
    result = call("compress", checkpoint, tmp_path / "out", "--width", 20, "--json")
    assert json.loads(result.stdout) == json.loads((tmp_path / "out" / "mlp_fusion_record.json").read_text())


def test_the_same_seed_gives_the_same_file(checkpoint, tmp_path):
    for name in ("a", "b"):
        assert call("compress", checkpoint, tmp_path / name, "--width", 20).exit_code == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_recipe_holds_the_same_fields_as_the_flags_and_flags_win(checkpoint, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {checkpoint}\nout: {tmp_path / 'a'}\nmethod: random-neurons\nlayers: 1\nkeep_ratio: 0.5\n"
    )
    assert call("compress", "--recipe", recipe).exit_code == 0
    assert call("compress", checkpoint, tmp_path / "b", "--recipe", recipe, "--method", "neuron-pruning").exit_code == 0
    records = [json.loads((tmp_path / name / "mlp_fusion_record.json").read_text())["recipe"] for name in ("a", "b")]
    assert [record["method"] for record in records] == ["random-neurons", "neuron-pruning"]
    assert [record["layers"] for record in records] == ["1", "1"]


def test_options_of_the_method_are_passed_on(checkpoint, tmp_path):
    out = tmp_path / "out"
    arguments = ("--width", 20, "--option", "num_init=3")
    assert call("compress", checkpoint, out, *arguments).exit_code == 0
    assert json.loads((out / "mlp_fusion_record.json").read_text())["recipe"]["options"]["num_init"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", 0], "`--width` must be between 1 and 56 at encoder.layer.0, got 0"),
        (["--width", 57], "`--width` must be between 1 and 56 at encoder.layer.0, got 57"),
        (["--width", 9, "--layers", "last:99"], "`--layers last:N` must have N between 1 and 3, got 99"),
        (["--width", 9, "--layers", "encoder"], "`--layers` must be `all`, `last:N`"),
        (["--keep-ratio", 0], "`--keep-ratio` must be above 0 and at most 1, got 0.0"),
        ([], "give `--keep-ratio 0.25` to keep a quarter of the neurons (or `--width`, or `--budget`)"),
        (["--width", 9, "--keep-ratio", 0.5], "only one of `--keep-ratio` and `--width` must be given, got 0.5 and 9"),
        (["--layers", "last8"], "`--layers` must be `all`, `last:N`"),
        (["--width", 9, "--method", "magic"], "`--method` must be one of fusion, folded-fusion"),
        (["--width", 9, "--option", "k=3"], "options of fusion must be among num_init, max_iter, refine, got"),
        (["--width", 9, "--option", "num_init"], "an option must be NAME=VALUE, got 'num_init'"),
        (["--width", 9, "--option", "num_init=["], "the value of option num_init must be YAML, got '['"),
        (["--width", 9, "--option", "num_init=1.5"], "`num_init` of fusion must be of type int, got 1.5"),
        (["--width", 9, "--device", "tpu"], "`--device` must be cpu or cuda, got 'tpu'"),
        (["--width", 9, "--architecture", "none.yaml"], "`--architecture` must be a readable YAML file"),
        (["--width", 9, "--recipe", "none.yaml"], "`--recipe` must be a readable YAML file"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_one_line_and_leave_nothing(arguments, message, checkpoint, tmp_path):
    assert message in refused("compress", checkpoint, tmp_path / "out", *arguments)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


def test_unknown_recipe_keys_and_types_are_refused(checkpoint, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, message in [
        ("ratio: 0.5", "the options must have keys among model, out, method, options, layers, keep_ratio,"),
        ("keep_ratio: much", "`keep_ratio` must be of type float or nothing, got 'much'"),
        ("seed: 1.5", "`seed` must be of type int, got 1.5"),
        ("- 3", "`--recipe` must hold keys and values, got [3]"),
        ("a: [", "`--recipe` must be a readable YAML file"),
    ]:
        recipe.write_text(text)
        assert message in refused("compress", checkpoint, tmp_path / "out", "--recipe", recipe)
    assert not (tmp_path / "out").exists()


def spoil_nothing(folder: Path) -> None:
    """The folder as it is."""


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-thing"}))


def foreign_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Trainer"]}))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def pickled_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change_tensor(folder: Path, name: str, change) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def not_a_number(folder: Path) -> None:
    change_tensor(folder, "encoder.layer.1.output.dense.weight", lambda t: t.clone().fill_(float("nan")))


def infinite(folder: Path) -> None:
    change_tensor(folder, "embeddings.LayerNorm.bias", lambda t: t.clone().fill_(float("inf")))


def wrong_shape(folder: Path) -> None:
    change_tensor(folder, "encoder.layer.1.output.dense.weight", lambda t: t[:, :40].clone())


def lost_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_config, "must hold config.json, it does not"),
        (break_config, "config.json must be JSON"),
        (unknown_type, "config.json must be a config that transformers knows"),
        (foreign_class, "`architectures` must name a class of transformers for bert, got 'Trainer'"),
        (truncate, "model.safetensors must be a whole safetensors file"),
        (cut_header, "model.safetensors must be a whole safetensors file"),
        (pickled_only, "pickled weights are never read"),
        (not_a_number, "must be finite, got 1792 NaN or Inf in encoder.layer.1.output.dense.weight"),
        (infinite, "must be finite, got 32 NaN or Inf in embeddings.LayerNorm.bias"),
        (wrong_shape, "must fit its config.json: encoder.layer.1.output.dense.weight has shape (32, 40), the"),
        (lost_layer, "lacks 1: encoder.layer.1.output.dense.weight"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_one_line_and_leaves_nothing(spoil, message, checkpoint, tmp_path):
    spoil(checkpoint)
    assert message in refused("compress", checkpoint, tmp_path / "out", "--width", 9)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


def test_an_output_folder_is_replaced_only_if_this_program_wrote_all_of_it(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert "OUT must be empty or new" in refused("compress", checkpoint, out, "--width", 9)
    assert (out / "precious.txt").read_text() == "mine"
    assert "OUT must be a folder, got the file" in refused("compress", checkpoint, out / "precious.txt", "--width", 9)
    message = refused("compress", checkpoint, out, "--width", 9, "--overwrite")
    assert "holds precious.txt, which this program did not write" in message
    assert (out / "precious.txt").read_text() == "mine"
    (out / "precious.txt").unlink()
    assert call("compress", checkpoint, out, "--width", 9).exit_code == 0
    assert "OUT must be empty or new" in refused("compress", checkpoint, out, "--width", 5)
    assert call("compress", checkpoint, out, "--width", 5, "--overwrite").exit_code == 0
    assert json.loads((out / "mlp_fusion_record.json").read_text())["sites"][0]["width"] == 5
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "out"}


def test_a_compressed_checkpoint_is_refused_as_source(checkpoint, tmp_path):
    assert call("compress", checkpoint, tmp_path / "out", "--width", 9).exit_code == 0
    message = "MODEL must not be compressed already"
    assert message in refused("compress", tmp_path / "out", tmp_path / "again", "--width", 5)


def test_a_missing_model_is_refused(tmp_path):
    message = refused("compress", tmp_path / "no such folder", tmp_path / "out", "--width", 9)
    assert "MODEL must be a folder, a GGUF file or a Hub id" in message
    assert "MODEL must be given" in refused("compress", "--width", 9)


def test_a_failing_disk_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlpfusion.report.html.beside.model_card", full)
    result = call("compress", checkpoint, tmp_path / "out", "--width", 9)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: No space left on device (OUT is ")
    assert len(result.stderr.splitlines()) == 1
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}


def test_help_imports_no_torch():
    script = (
        "import sys; from click.testing import CliRunner; from mlpfusion.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "sys.exit(sum(name.split('.')[0] in ('torch', 'transformers', 'rich', 'yaml') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
