"""Checkpoints cut with one block in memory at a time: the same bytes as in memory, whatever the method."""

import pytest
import torch
from command import refused
from detected import DETECTED
from mixtures import MIXTURES, slow_but
from pico import PICO, SEVERAL, others_slow
from streamed import cut, save, stream, text_flags, written_and_interrupted

from mlpfusion.checkpoint.config import read_config
from mlpfusion.checkpoint.read import load_model
from mlpfusion.checkpoint.stored_model import StoredModel
from mlpfusion.compression.streaming.block_files import BlockFiles
from mlpfusion.sites.proof.made_up_inputs import made_up_inputs

QUICK = (*SEVERAL, "mixtral", "deepseek_v3", "gpt_oss", "falcon", "gemma3")
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
