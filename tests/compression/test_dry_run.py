"""A dry run says what the run writes, refuses what it refuses, reads no weight and writes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, refused
from detected import detected_model
from kill import contents
from mixtures import mixture_model
from pico import others_slow, pico_model
from safetensors.torch import load_file, save_file
from tiny_task import sentences, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mlpfusion.compression.streaming.launch import Launch
from mlpfusion.storage.unfinished import start_work

MIXTURES = ("mixtral", "deepseek_v3", "gpt_oss")


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    pico_model("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (tmp_path / "texts.txt").write_text("\n".join(sentences(64, seed=0)[0]))
    return folder


def told(source: Path, *flags: object) -> dict[str, Any]:
    """What a dry run tells; it must leave everything around the source as it is."""
    before = contents(source.parent)
    result = call("compress", source, source.parent / "out", *flags, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert contents(source.parent) == before
    return json.loads(result.stdout)


def check_told(source: Path, *flags: object) -> dict[str, Any]:
    """What a dry run tells, once it is seen to be what the run then writes."""
    plan = told(source, *flags)
    result = call("compress", source, source.parent / "out", *flags, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (plan["original"], plan["compressed"]) == (record["original"], record["compressed"])
    assert plan["no_stock_form"] == record["no_stock_form"]
    sizes = [(site["path"], site["original_width"], site["width"], site["rank"]) for site in plan["sites"]]
    assert sizes == [(s["path"], s["original_width"], s["width"], s["rank"]) for s in record["sites"]]
    assert {**record["recipe"], "calibration": None} == {**plan["recipe"], "calibration": None}
    return plan | {"expected_peak_bytes": record["expected_peak_bytes"]}


@pytest.mark.parametrize("name", [*others_slow(), *MIXTURES, "falcon", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sizes_and_stock_form_are_those_of_the_run(name, dtype, tmp_path):
    make = dict.fromkeys(MIXTURES, mixture_model) | dict.fromkeys(("falcon", "gemma3"), detected_model)
    make.get(name, pico_model)(name).to(dtype).save_pretrained(tmp_path / "source", max_shard_size="40KB")
    check_told(tmp_path / "source", "--keep-ratio", 0.5)


@pytest.mark.parametrize("method", ["folded-fusion", "svd", "magnitude", "ntk-sap", "mmd"])
def test_every_kind_of_method_without_data_is_foretold(method, source):
    check_told(source, "--method", method, "--keep-ratio", 0.3, "--layers", "last:2")


@pytest.mark.parametrize("method", ["ntk-match", "flap", "whitened-svd"])
def test_every_kind_of_calibrated_method_is_foretold(method, source):
    texts = ("--calibration", source.parent / "texts.txt", "--calibration-samples", 8)
    plan = check_told(source, "--method", method, "--keep-ratio", 0.3, *texts)
    assert (plan["streamed_bytes"] is None) == (method == "ntk-match")  # its match needs gradients


@pytest.mark.parametrize("more", [(), ("--sequential",)])
def test_the_memory_is_that_of_the_streamed_run(more, source):
    plain = check_told(source, "--keep-ratio", 0.5, "--stream")
    assert plain["streamed_bytes"] == plain["expected_peak_bytes"]
    texts = ("--calibration", source.parent / "texts.txt", "--method", "flap", *more)
    seen = check_told(source, "--keep-ratio", 0.5, "--stream", "--overwrite", *texts)
    assert seen["streamed_bytes"] == seen["expected_peak_bytes"] > plain["streamed_bytes"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--budget", "90%"), "at most 26,503 parameters are kept"),
        (("--budget", "90%flops"), "a budget of 90%flops is spread by the errors that the weights give"),
        (("--method", "nirvana", "--keep-ratio", 0.5, "--data-free"), "nirvana ranks the neurons of all layers"),
        (("--method", "flop", "--keep-ratio", 0.5), "flop learns them on the task"),
        (("--method", "slimming", "--keep-ratio", 0.5), "slimming learns them on the task"),
        (("--method", "moefication", "--keep-ratio", 0.5), "moefication learns them on the task"),
    ],
)
def test_what_only_the_weights_can_tell_is_said(flags, words, source, tmp_path):
    if flags[1] in ("flop", "slimming", "moefication"):
        rows = "\n".join(f"{text}\t{label}" for text, label in zip(*sentences(64, seed=0), strict=True))
        (tmp_path / "train.tsv").write_text("text\tlabel\n" + rows)
        flags = (*flags, "--train", tmp_path / "train.tsv", "--text-column", "text", "--label-column", "label")
    plan = told(source, *flags)
    assert words in plan["unknown"]
    assert plan["compressed"] is None
    assert [site["width"] for site in plan["sites"]] == [None, None, None]
    assert bool(plan["no_stock_form"]) == ("moefication" in flags)
    output = call("compress", source, tmp_path / "out", *flags, "--dry-run").stdout
    assert words in output
    assert ("After folding" in output) == ("moefication" in flags)


def test_a_mask_leaves_the_sizes_and_learns_on_what_is_checked(source, tmp_path):
    refusal = refused("compress", source, tmp_path / "out", "--method", "lth", "--keep-ratio", 0.5, "--dry-run")
    assert "`--task` must be given for lth" in refusal
    (tmp_path / "train.tsv").write_text("text\tlabel\nno label here")
    flags = ("--method", "lth", "--keep-ratio", 0.5, "--train", tmp_path / "train.tsv")
    columns = ("--text-column", "text", "--label-column", "label")
    assert "train.tsv" in refused("compress", source, tmp_path / "out", *flags, *columns, "--dry-run")


def test_no_weight_is_read(source, tmp_path):
    file = source / "model.safetensors"
    tensors = load_file(file)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, file, {"format": "pt"})
    plan = told(source, "--keep-ratio", 0.5)
    assert plan["compressed"]["parameters"] < plan["original"]["parameters"]
    assert "must be finite" in refused("compress", source, tmp_path / "out", "--keep-ratio", 0.5)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--keep-ratio", 2),
        ("--width", 57),
        ("--layers", "last:4", "--width", 8),
        ("--method", "nothing", "--width", 8),
        ("--method", "svd", "--width", 8),
        ("--method", "ntk-match", "--width", 8),
        ("--budget", "1%"),
        ("--device", "tpu", "--width", 8),
        ("--stream", "--budget", "90%"),
        ("--stream", "--method", "magnitude", "--keep-ratio", 0.5),
        ("--resume", "--width", 8),
        ("--stacks", "vision", "--width", 8),
        ("--calibration", "nowhere.txt", "--method", "flap", "--width", 8),
    ],
    ids=str,
)
def test_what_the_run_refuses_is_refused(flags, source, tmp_path):
    line = refused("compress", source, tmp_path / "out", *flags)
    assert refused("compress", source, tmp_path / "out", *flags, "--dry-run") == line


@pytest.mark.parametrize("damage", ["truncated", "missing", "no tokenizer", "other shapes", "occupied"])
def test_a_damaged_source_or_an_occupied_place_is_refused(damage, source, tmp_path):
    file, out = source / "model.safetensors", tmp_path / "out"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "missing":
        file.unlink()
    elif damage == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (source / name).unlink()
    elif damage == "other shapes":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 60}))
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    flags = ("--method", "flap", "--calibration", tmp_path / "texts.txt", "--keep-ratio", 0.5)
    line = refused("compress", source, out, *flags)
    assert refused("compress", source, out, *flags, "--dry-run") == line


def test_texts_that_the_model_cannot_take_are_refused(source, tmp_path):
    words = Tokenizer(models.WordLevel({f"word{number}": number for number in range(99)}, unk_token="word1"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="word0").save_pretrained(source)
    (tmp_path / "texts.txt").write_text("word2\nword98\n" * 9)
    flags = ("compress", source, tmp_path / "out", "--method", "flap", "--keep-ratio", 0.5)
    line = refused(*flags, "--calibration", tmp_path / "texts.txt")
    assert refused(*flags, "--calibration", tmp_path / "texts.txt", "--dry-run") == line


def test_an_unfinished_run_is_in_the_way_of_a_streamed_one(source, tmp_path):
    out = tmp_path / "out"
    start_work(out, {"seed": 0}, resume=False, overwrite=False)
    flags = ("compress", source, out, "--width", 8, "--stream", "--dry-run")
    assert "has an unfinished run" in refused(*flags)
    assert "must be left out with `--dry-run`" in refused(*flags, "--resume")
    assert call(*flags, "--overwrite").exit_code == 0


def test_one_process_of_a_launch_speaks(source, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ("compress", source, tmp_path / "out", "--keep-ratio", 0.5, "--stream", "--dry-run")
    assert Launch.of_this_process().size == 2
    assert "56 -> 28" in call(*flags).stdout
    texts = ("--method", "flap", "--calibration", tmp_path / "texts.txt", "--sequential")
    assert "must be left out for 2 processes" in refused(*flags, *texts)
    monkeypatch.setenv("RANK", "1")
    assert call(*flags).stdout == ""


def test_people_are_told_the_same(source, tmp_path):
    output = " ".join(call("compress", source, tmp_path / "out", "--keep-ratio", 0.25, "--dry-run").stdout.split())
    for words in (
        "encoder.layer.2 56 -> 14",
        "29,448 -> 21,258 parameters",
        "with --stream at most 0.5 GiB are expected",
        "time: no estimate",
        "After folding: a stock model",
        f"nothing was written to {tmp_path / 'out'}",
    ):
        assert words in output
    factors = call("compress", source, tmp_path / "out", "--method", "svd", "--keep-ratio", 0.25, "--dry-run").stdout
    masks = call("compress", source, tmp_path / "out", "--method", "ntk-sap", "--keep-ratio", 0.25, "--dry-run").stdout
    assert "56 -> rank 5" in factors
    assert "56 -> 25 % of its entries" in masks


def test_a_language_model_that_would_write_its_own_text_is_not_run(tmp_path):
    source = tmp_path / "source"
    pico_model("llama", AutoModelForCausalLM).save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    plan = told(source, "--method", "flap", "--data-free", "--keep-ratio", 0.5)
    assert plan["streamed_bytes"] is None
    assert [site["width"] for site in plan["sites"]] == [28, 28, 28]
