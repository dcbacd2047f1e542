"""From a compressed checkpoint to what other engines load, by the command."""

import json
from dataclasses import replace

import pytest
import torch
from command import call, refused
from pico import others_slow, pico_config, pico_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import mlpfusion
from mlpfusion.compression.install import install_outcomes
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.settings import Settings
from mlpfusion.errors import InputError
from mlpfusion.export import table
from mlpfusion.export.fresh import run_module
from mlpfusion.export.hf import TARGET
from mlpfusion.export.run import EXPORT_RECORD_FILE
from mlpfusion.extras import ONNX
from mlpfusion.kinds.outcome import Routed
from mlpfusion.options.selection import Selection
from mlpfusion.sites.sites import find_sites, read_mlp
from mlpfusion.sites.table import ARCHITECTURES

LACKING = replace(ONNX, modules=("no_such_module",))


@pytest.fixture
def cut(tmp_path):
    """A function that saves a compressed pico model: (name, flags of `compress`) -> folder."""

    def make(name="bert", *flags, **how):
        pico_model(name, **how).save_pretrained(tmp_path / "model")
        done = call("compress", tmp_path / "model", tmp_path / "cut", *(flags or ("--width", 14)))
        assert done.exit_code == 0, done.output
        return tmp_path / "cut"

    return make


def exported(cut, out, *flags):
    """The record that the command leaves."""
    done = call("export", cut, out, *flags)
    assert done.exit_code == 0, done.output
    return json.loads((out / EXPORT_RECORD_FILE).read_text())


# A process each: of the others what is folded is compared in tests/kinds, in this process.
@pytest.mark.parametrize("name", others_slow(("bert", "gpt2", "llama", "t5"), quick=("bert",)))
def test_an_export_runs_in_plain_transformers_with_the_same_outputs(name, cut, tmp_path):
    record = exported(cut(name), tmp_path / "out")
    assert 0 < record["difference"] < 1e-5
    assert record["padding"] == 0
    assert "mlp_fusion" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.slow
def test_layers_of_different_widths_are_padded_on_request_only(cut, tmp_path):
    source = cut("bert", "--width", 14, "--layers", "last:1")
    assert "the layers have different widths; --pad-to gives them one" in refused("export", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = exported(source, tmp_path / "out", "--pad-to", 8)
    assert record["difference"] < 1e-5
    width = pico_config("bert").intermediate_size
    assert width % 8 == 0
    assert record["padding"] == (width - 14) * (2 * pico_config("bert").hidden_size + 1)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == width


def test_routed_blocks_are_refused_by_every_target_before_weights_are_read(tmp_path, monkeypatch):
    model, row = pico_model("bert"), ARCHITECTURES["bert"]
    plan = make_plan(find_sites(model, row), Selection(keep_ratio=0.5))
    routers = torch.zeros(4, model.config.hidden_size), torch.zeros(4, 4)
    outcomes = [Routed(read_mlp(model, site), *routers, 2) for site, _ in plan.entries]
    settings = Settings(mlpfusion.MoEfication(), Selection(keep_ratio=0.5), 0)
    install_outcomes(model, plan, outcomes, row, settings, torch.device("cpu"))
    model.save_pretrained(tmp_path / "cut")
    monkeypatch.setattr("mlpfusion.checkpoint.open.Checkpoint.load", None)
    for name, target in list(table.TARGETS.items()):
        monkeypatch.setitem(table.TARGETS, name, replace(target, needs=None))
        message = refused("export", tmp_path / "cut", tmp_path / "out", "--to", name)
        assert "its blocks are routed to experts, which no stock model does" in message


@pytest.mark.slow
def test_a_checkpoint_in_bf16_stays_one(cut, tmp_path):
    source = cut("llama", auto_class=AutoModelForCausalLM, dtype=torch.bfloat16)
    record = exported(source, tmp_path / "out")
    assert record["dtype"] == "bfloat16"
    assert record["difference"] < 0.05
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.slow
def test_low_rank_and_masked_models_are_stock_ones_of_their_old_size(cut, tmp_path):
    record = exported(cut("bert", "--method", "svd", "--keep-ratio", 0.5), tmp_path / "out")
    assert record["difference"] < 1e-5
    assert record["padding"] == 0


def test_an_export_whose_outputs_differ_does_not_appear(cut, tmp_path, monkeypatch):
    def wrong(model, work):
        return 1.01 * TARGET.expected(model, work)

    monkeypatch.setitem(table.TARGETS, "hf", replace(TARGET, expected=wrong))
    message = refused("export", cut(), tmp_path / "out")
    assert "by 0.01 of their size, of which 0.0001 is allowed" in message
    assert {path.name for path in tmp_path.iterdir()} == {"model", "cut"}


def test_the_other_process_cannot_import_this_package(tmp_path, monkeypatch):
    (tmp_path / "careless.py").write_text("import mlpfusion\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(InputError, match="careless says: .*import of mlpfusion halted"):
        run_module("careless", [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--to", "tflite"), "`--to` must be one of hf, onnx, openvino, executorch, gguf, got 'tflite'"),
        (("--pad-to", 0), "`--pad-to` must be at least 1, got 0"),
        (("--dtype", "f16"), "`--dtype` must be left out but for `--to` gguf, got 'f16'"),
    ],
)
def test_wrong_options_are_one_line(flags, message, cut, tmp_path):
    assert message in refused("export", cut(), tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_compressed_is_one_line(tmp_path):
    pico_model("bert").save_pretrained(tmp_path / "model")
    assert "must be compressed by mlpfusion" in refused("export", tmp_path / "model", tmp_path / "out")


def test_a_missing_package_names_the_extra(cut, tmp_path, monkeypatch):
    monkeypatch.setitem(table.TARGETS, "onnx", replace(table.TARGETS["onnx"], needs=LACKING))
    message = refused("export", cut(), tmp_path / "out", "--to", "onnx")
    assert "needs no_such_module: pip install 'mlpfusion[onnx]'" in message
