"""What a streamed cut refuses before any work, each in one line, and the memory that it says beforehand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import call, refused
from kill import Ending, contents, forked
from mixtures import mixture_logits, mixture_model
from safetensors.torch import load_file, save_file
from streamed import cut, moments_of, save, stream

import mlpfusion
from mlpfusion.checkpoint.config import read_config
from mlpfusion.checkpoint.read import load_model
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.streaming.memory import SeenTokens, expected_bytes
from mlpfusion.errors import InputError
from mlpfusion.options.selection import Selection
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.sites import find_sites


def damaged(source: Path, tensor: str, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Changes one tensor of a checkpoint in its file, whose name is returned."""
    for file in sorted(source.glob("*.safetensors")):
        tensors = load_file(file)
        if tensor in tensors:
            tensors[tensor] = change(tensors[tensor])
            save_file(tensors, file, {"format": "pt"})
            return file.name
    raise AssertionError(tensor)


EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"
FAULTS = {
    "NaN": (lambda tensor: tensor.index_fill(0, torch.tensor([3]), float("nan")), "the weights must be finite"),
    "shape": (lambda tensor: tensor[:, :40].contiguous(), "must fit its config.json"),
    "dtype": (lambda tensor: tensor.to(torch.int8), "must hold plain weights (F64, F32, F16, BF16), got I8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_expert_is_named_with_its_file(fault, tmp_path):
    source, out = save("qwen3_moe", tmp_path / "source"), tmp_path / "out"
    change, words = FAULTS[fault]
    file = damaged(source, EXPERT, change)
    before = contents(source)
    told = refused("compress", source, out, "--keep-ratio", 0.5, "--stream")
    assert words in told
    assert EXPERT in told
    assert file in told or fault == "shape"
    assert not out.exists()
    assert contents(source) == before


def truncate(source: Path, file: str) -> None:
    (source / file).write_bytes((source / file).read_bytes()[:-1])


def name_in_index(source: Path, file: str) -> None:
    index = source / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"][EXPERT] = file
    index.write_text(json.dumps(found))


def store_twice(source: Path, file: str) -> None:
    other = next(one for one in sorted(source.glob("*.safetensors")) if one.name != file)
    save_file({**load_file(other), EXPERT: load_file(source / file)[EXPERT]}, other, {"format": "pt"})


# What is done to the files, given the one that holds the expert, and what is said of it.
FILE_FAULTS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "truncated": (truncate, "{file} must be a whole safetensors file"),
    "missing": (lambda source, _: name_in_index(source, "none.safetensors"), "none.safetensors"),
    "outside": (lambda source, _: name_in_index(source, "../outside.safetensors"), "must name files beside it"),
    "twice": (store_twice, "a tensor must be in one file, " + EXPERT),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files_of_experts_are_named_before_any_work(fault, tmp_path):
    source, out = save("qwen3_moe", tmp_path / "source"), tmp_path / "out"
    damage, words = FILE_FAULTS[fault]
    file = damaged(source, EXPERT, lambda tensor: tensor)
    damage(source, file)
    before = contents(source)
    assert words.format(file=file) in refused("compress", source, out, "--keep-ratio", 0.5, "--stream")
    assert [one.name for one in tmp_path.iterdir()] == ["source"]
    assert contents(source) == before


@pytest.mark.parametrize("flags", [("--stream",), ()])
def test_a_kernel_that_refuses_the_dtype_of_the_experts_is_named(flags, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    mixture_model("mixtral").double().save_pretrained(source)
    before = contents(source)
    wanted = "experts in fp32, bf16 or fp16 for their kernel grouped_mm, got float64 in "
    assert wanted in refused("compress", source, out, "--keep-ratio", 0.5, *flags)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]
    assert contents(source) == before
    named = f"{wanted}(model.)?layers.0.mlp.experts.gate_up_proj"
    with pytest.raises(InputError, match=named):
        load_model(source, read_config(source))
    with pytest.raises(InputError, match=named):
        mlpfusion.compress(mixture_model("mixtral").double(), mlpfusion.Fusion(), keep_ratio=0.5)
    model = mixture_model("mixtral").double()
    model.set_experts_implementation("batched_mm")
    mlpfusion.compress(model, mlpfusion.Fusion(), keep_ratio=0.5)
    assert mixture_logits(model).dtype == torch.float64


def test_what_streaming_cannot_do_is_said_before_any_work(tmp_path):
    source, out, texts = save("mixtral", tmp_path / "source"), tmp_path / "out", tmp_path / "texts.txt"
    texts.write_text("one\n")
    flags = ("--keep-ratio", 0.5, "--stream")
    calibrated = ("--method", "ntk-match", "--calibration", texts)
    assert "must have no second step with `--stream`, as ntk-match with `match=none`" in refused(
        "compress", source, out, *flags, *calibrated
    )
    data_free = ("--method", "ntk-match", "--option", "match=none", "--data-free")
    assert "`--data-free` must be left out with `--stream`" in refused("compress", source, out, *flags, *data_free)
    together = ("--method", "magnitude")
    assert "looks at each block by itself" in refused("compress", source, out, *flags, *together)
    assert "`--budget` must be left out" in refused("compress", source, out, "--budget", "60%", "--stream")
    assert "`--resume` must be left out without `--stream`" in refused(
        "compress", source, out, "--keep-ratio", 0.5, "--resume"
    )
    width = refused("compress", source, out, "--width", 20, "--stream")
    assert "`--width` must be a multiple of 8 for the experts at layers.0.mlp.experts" in width
    assert not list(tmp_path.glob("out*"))


def test_another_model_or_method_does_not_go_on_with_a_run(tmp_path):
    source, out = save("bert", tmp_path / "source"), tmp_path / "out"
    moments = moments_of(source, tmp_path / "run")
    forked(lambda: stream(source, out), tmp_path, Ending(moments // 2))
    assert (tmp_path / "out.unfinished").exists()
    assert "`--method` must be 'fusion' to resume" in refused(
        "compress", source, out, "--keep-ratio", 0.5, "--stream", "--resume", "--method", "svd"
    )
    damaged(source, "encoder.layer.0.output.dense.weight", lambda tensor: tensor + 1)
    assert "its MLPs have changed" in refused("compress", source, out, "--keep-ratio", 0.5, "--stream", "--resume")
    assert cut(source, out, "--stream", "--overwrite") == cut(source, tmp_path / "whole")


def test_the_memory_is_said_beforehand(tmp_path):
    source, out = save("mixtral", tmp_path / "source"), tmp_path / "out"
    told = call("inspect", source).output
    assert "`compress --stream`, without texts, would take at most 0.5 GiB of memory." in told
    result = stream(source, out)
    assert "streamed, a block at a time: at most 0.5 GiB of memory expected" in result.output
    assert "`mlpfusion evaluate" in result.output


def test_gradients_are_part_of_the_memory():
    """What leaves an MLP and its gradient, for a batch and for all tokens, and the graph of a layer."""
    model = mixture_model("mixtral").to(torch.bfloat16)
    plan = make_plan(find_sites(model, find_architecture(model)), Selection(width=24))
    states = 4 * 2 * 3 * 32
    layer = 4 * (12 * 32 + 6 * 48)
    none, one, two = (expected_bytes(model, plan, SeenTokens(1000, 100, times)) for times in range(3))
    assert two - one == 1000 * states
    assert one - none == 1000 * states + 100 * (states + layer) - 4 * 1000 * 8 * 32


def test_passes_through_the_cut_model_are_part_of_the_memory():
    """Four states more for every token, and the experts that they go on with, in fp32."""
    model = mixture_model("mixtral").to(torch.bfloat16)
    plan = make_plan(find_sites(model, find_architecture(model)), Selection(width=24))
    once, twice = (expected_bytes(model, plan, SeenTokens(1000), sequential=sequential) for sequential in (False, True))
    assert twice - once == 4 * (4 * 1000 * 32 + 4 * 3 * 24 * 32)
