"""Checkpoints cut with one block in memory at a time: the same bytes, however often the run dies, by any number of
processes."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from click.testing import Result
from command import call, refused
from detected import DETECTED, detected_model
from kill import Ending, contents, forked
from mixtures import MIXTURES, mixture_logits, mixture_model, slow_but, switch_model
from pico import PICO, SEVERAL, others_slow, pico_model
from safetensors.torch import load_file, save_file
from tiny_task import sentences, tiny_tokenizer

import mlpfusion
from mlpfusion.checkpoint.config import read_config
from mlpfusion.checkpoint.read import load_model
from mlpfusion.checkpoint.stored_model import StoredModel
from mlpfusion.compression.plan import make_plan
from mlpfusion.compression.streaming.block_files import BlockFiles
from mlpfusion.compression.streaming.memory import SeenTokens, expected_bytes
from mlpfusion.errors import InputError
from mlpfusion.options.selection import Selection
from mlpfusion.sites.detect import find_architecture
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs
from mlpfusion.sites.sites import find_sites

QUICK = (*SEVERAL, "mixtral", "deepseek_v3", "gpt_oss", "falcon", "gemma3")
# The time, and what only a model that is in memory can be asked.
_OF_THE_RUN = re.compile(
    rb'"(seconds|peak_bytes|expected_peak_bytes|divergence)": ([0-9.e+-]+|null)'
    rb"|<p>Its predictions moved by [0-9.]+ nats a token.</p>\n"
)
CALIBRATED = (
    "bart",
    "deepseek_v3",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "llama4_text",
    "qwen3_moe",
    "t5-gated",
    "falcon",
    "modernbert",
)
each = pytest.mark.parametrize(
    "name",
    [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in (*PICO, *MIXTURES, *DETECTED)],
)


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny checkpoint in several files."""
    known = {"switch": lambda _: switch_model()} | dict.fromkeys(PICO, pico_model)
    make = (known | dict.fromkeys(MIXTURES, mixture_model) | dict.fromkeys(DETECTED, detected_model))[name]
    make(name).to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return folder


def steady(folder: Path) -> dict[str, bytes]:
    found = contents(folder)
    assert found is not None
    return {name: _OF_THE_RUN.sub(b"", content) for name, content in found.items()}


def cut(source: Path, out: Path, *flags: object) -> dict[str, bytes]:
    """The files that the command writes."""
    result = call("compress", source, out, "--keep-ratio", 0.5, *flags)
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(f"{out.name}.")] == []
    return steady(out)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_bytes_are_those_of_a_model_in_memory(name, dtype, tmp_path):
    source, flags = save(name, tmp_path / "source", dtype), ("--keep-ratio", 0.5)
    if (name, dtype) == ("deberta", torch.bfloat16):  # transformers' code takes no such weights
        words = "MODEL must run on made-up inputs"
        assert words in refused("compress", source, tmp_path / "out", *flags)
        assert words in refused("compress", source, tmp_path / "out", *flags, "--stream")
    else:
        assert cut(source, tmp_path / "streamed", "--stream") == cut(source, tmp_path / "whole")


@pytest.mark.parametrize("method", ["svd", "neuron-pruning", "clustering", "folded-fusion", "sketch"])
def test_every_kind_of_outcome_is_streamed(method, tmp_path):
    source = save("bert", tmp_path / "source")
    flags = ("--method", method, "--layers", "last:2")
    assert cut(source, tmp_path / "streamed", "--stream", *flags) == cut(source, tmp_path / "whole", *flags)


def text_flags(source: Path, texts: Path, method: str = "ntk-match") -> tuple[object, ...]:
    """Flags of a calibrated cut; gives the checkpoint a tokenizer and writes the texts."""
    tiny_tokenizer().save_pretrained(source)
    texts.write_text("\n".join(sentences(64, seed=0)[0]))
    options = ("--option", "match=none") if method == "ntk-match" else ()
    return "--method", method, *options, "--calibration", texts, "--calibration-samples", 40


def written_and_interrupted(write: Callable[..., None]) -> Callable[..., None]:
    def interrupted(*arguments: object) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    return interrupted


def stream(source: Path, out: Path, *flags: object) -> Result:
    """What a process that may be killed does."""
    return call("compress", source, out, "--keep-ratio", 0.5, "--stream", *flags)


@pytest.mark.parametrize(
    "name", [*(("bert", "llama", "mixtral")), *(pytest.param(one, marks=pytest.mark.slow) for one in CALIBRATED)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_texts_that_pass_layer_by_layer_give_the_bytes_too(name, dtype, tmp_path, monkeypatch):
    """Also for a run that died in between."""
    source, out = save(name, tmp_path / "source", dtype), tmp_path / "streamed"
    flags = text_flags(source, tmp_path / "texts.txt")
    expected = cut(source, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "write", written_and_interrupted(BlockFiles.write))
        assert stream(source, out, *flags).exit_code == 130
    assert len(list(tmp_path.glob("streamed.unfinished/block-*"))) == 1
    told = stream(source, out, "--resume", *flags[:-1], 39)
    assert "`--calibration` must be" in told.stderr
    assert "to resume the run" in told.stderr
    assert cut(source, out, "--stream", "--resume", *flags) == expected


GRADIENTS = ("maintain-ntk-gradient", "ntk-match first")
QUICK_GRADIENTS = (("bert", torch.bfloat16), ("bart", torch.float32), ("mixtral", torch.bfloat16))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype) if (name, dtype) in QUICK_GRADIENTS else pytest.param(name, dtype, marks=pytest.mark.slow)
        for name in ("bert", "llama", "mixtral", *CALIBRATED)
        for dtype in (torch.float32, torch.bfloat16)
    ],
    ids=str,
)
@pytest.mark.parametrize("method", GRADIENTS)
def test_gradients_that_come_back_layer_by_layer_give_the_bytes_too(name, dtype, method, tmp_path):
    source = save(name, tmp_path / "source", dtype)
    flags = text_flags(source, tmp_path / "texts.txt", method.split()[0])
    if method != "maintain-ntk-gradient":
        flags = (*flags, "--option", "pooling=first", "--option", "refine_epochs=1")
    assert cut(source, tmp_path / "streamed", "--stream", *flags) == cut(source, tmp_path / "whole", *flags)


def test_gradients_are_recorded_again_by_a_run_that_goes_on(tmp_path, monkeypatch):
    """Also where each block sees what the cut ones before it leave."""
    source, out = save("mixtral", tmp_path / "source", torch.bfloat16), tmp_path / "streamed"
    flags = (*text_flags(source, tmp_path / "texts.txt", "maintain-ntk-gradient"), "--sequential")
    expected = cut(source, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "write", written_and_interrupted(BlockFiles.write))
        assert stream(source, out, *flags).exit_code == 130
    assert cut(source, out, "--stream", "--resume", *flags) == expected


# Llama 4's experts cannot be calibrated in sequence.
IN_SEQUENCE = [name for name in CALIBRATED if name != "llama4_text"]
# A dense model with matrices that lie the other way, products of two factors, and both ways to keep experts.
SEQUENTIAL = {"gpt2": "ntk-match", "bert": "whitened-svd", "mixtral": "ntk-match", "switch": "ntk-match"}


@pytest.mark.parametrize(
    "name",
    [*SEQUENTIAL, *(pytest.param(one, marks=pytest.mark.slow) for one in IN_SEQUENCE if one not in SEQUENTIAL)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_blocks_that_see_what_the_cut_ones_before_them_leave_have_the_same_bytes(name, dtype, tmp_path, monkeypatch):
    """Also those of a run that died behind its first block, and once more behind the next."""
    source, out = save(name, tmp_path / "source", dtype), tmp_path / "streamed"
    flags = text_flags(source, tmp_path / "texts.txt", SEQUENTIAL.get(name, "ntk-match"))
    expected = cut(source, tmp_path / "whole", *flags, "--sequential")
    assert expected != cut(source, tmp_path / "plain", *flags)
    for resume in ((), ("--resume",)):
        with monkeypatch.context() as patch:
            patch.setattr(BlockFiles, "write", written_and_interrupted(BlockFiles.write))
            assert stream(source, out, *flags, "--sequential", *resume).exit_code == 130
    assert len(list(tmp_path.glob("streamed.unfinished/block-*"))) == 2
    told = stream(source, out, "--resume", *flags)
    assert "`--sequential` must be True to resume the run" in told.stderr
    assert cut(source, out, "--stream", "--resume", *flags, "--sequential") == expected


def test_processes_that_share_the_blocks_cannot_wait_for_those_before_them(tmp_path, monkeypatch):
    source = save("mixtral", tmp_path / "source")
    flags = (*text_flags(source, tmp_path / "texts.txt"), "--stream", "--sequential", "--keep-ratio", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused("compress", source, tmp_path / "out", *flags)
    assert "`--sequential` must be left out for 2 processes" in told
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", [*others_slow(PICO), *slow_but("mixtral", "deepseek_v3")])
def test_a_model_whose_weights_stay_in_their_files_computes_the_same(name, tmp_path):
    source = save(name, tmp_path / "source")
    model, stored = load_model(source, read_config(source)).eval(), StoredModel(source, read_config(source))
    inputs = next(iter(made_up_inputs(model)))
    with torch.no_grad(), stored, stored.runnable():
        for expected, found in zip(model(**inputs).values(), stored.model(**inputs).values(), strict=True):
            assert not isinstance(expected, torch.Tensor) or torch.equal(expected, found)
    assert all(tensor.is_meta for tensor in (*stored.model.parameters(), *stored.model.buffers()))


def killed_and_resumed(source: Path, folder: Path, ending: Ending, expected: dict[str, bytes]) -> None:
    """A run that ends so in the new folder `folder` leaves nothing or all of OUT; then it goes on to the same bytes."""
    folder.mkdir()
    out, before = folder / "out", contents(source)
    forked(lambda: stream(source, out), folder, ending)
    assert not out.exists() or steady(out) == expected
    is_over = out.exists() and not (folder / "out.unfinished").exists()
    assert cut(source, out, "--stream", "--overwrite" if is_over else "--resume") == expected
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert contents(source) == before
    shutil.rmtree(folder)


def moments_of(source: Path, folder: Path) -> int:
    """How many moments a run has at which it can be killed."""
    folder.mkdir()
    code, moments, _ = forked(lambda: stream(source, folder / "out"), folder, Ending())
    shutil.rmtree(folder)
    assert code == 0
    return moments


@pytest.mark.parametrize(
    ("name", "kills"), [("mixtral", 8), pytest.param("mixtral", 100, marks=pytest.mark.exhaustive)]
)
def test_a_killed_run_goes_on_to_the_same_bytes(name, kills, tmp_path):
    source = save(name, tmp_path / "source")
    expected, moments = cut(source, tmp_path / "whole"), moments_of(source, tmp_path / "run")
    random = Random(kills)
    for _ in range(kills):
        killed_and_resumed(source, tmp_path / "run", Ending(random.randint(1, moments)), expected)


def test_a_full_disk_leaves_no_out_and_the_run_goes_on_later(tmp_path):
    source = save("mixtral", tmp_path / "source")
    expected, moments = cut(source, tmp_path / "whole"), moments_of(source, tmp_path / "run")
    for moment in (moments // 3, 2 * moments // 3):
        killed_and_resumed(source, tmp_path / "run", Ending(moment, error=errno.ENOSPC), expected)


def test_finished_blocks_are_not_computed_again(tmp_path, monkeypatch):
    source, out = save("bert", tmp_path / "source"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(BlockFiles, "write", written_and_interrupted(BlockFiles.write))
        assert stream(source, out).exit_code == 130
    assert not out.exists()
    written, write = [], BlockFiles.write

    def told(files: BlockFiles, number: int, *rest: Any) -> None:
        written.append(number)
        write(files, number, *rest)

    monkeypatch.setattr(BlockFiles, "write", told)
    assert stream(source, out, "--resume").exit_code == 0
    assert written == [1, 2]


def torchrun(source: Path, out: Path, *flags: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """The command by two processes; `before` is code that each runs first."""
    script = out.parent / "command.py"
    script.write_text(f"import os, signal, sys\nfrom mlpfusion import cli\n{before}\nsys.exit(cli.main())\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [script, "compress", source, out, "--keep-ratio", "0.5", "--stream", *flags]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [*command, "--max-restarts", "1", *map(str, words)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# The second process dies once, after its first block.
DIES = """
from mlpfusion.compression.streaming.block_files import BlockFiles
write = BlockFiles.write
def dying(self, number, *rest):
    write(self, number, *rest)
    if number == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
BlockFiles.write = dying
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "calibrated"), [("", False), (DIES, False), ("", True)], ids=["whole", "killed", "with texts"]
)
def test_two_processes_write_the_same_bytes_also_after_one_died(before, calibrated, tmp_path):
    source = save("mixtral", tmp_path / "source")
    flags = text_flags(source, tmp_path / "texts.txt") if calibrated else ()
    expected, out = cut(source, tmp_path / "whole", *flags), tmp_path / "out"
    result = torchrun(source, out, "--resume", *flags, before=before)
    assert result.returncode == 0, result.stderr
    assert steady(out) == expected
    assert result.stdout.count("is complete") == 1
    assert ("exitcode: -9" in result.stderr) == bool(before)


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
