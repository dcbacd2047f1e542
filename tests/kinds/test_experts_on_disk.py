"""Checkpoints of mixtures through the commands: on disk most types keep one tensor an expert."""

import re
from pathlib import Path

import pytest
import torch
from command import call, refused
from mixtures import fused_mixture, mixture_model, slow_but
from safetensors.torch import load_file, save_file
from tiny_task import tiny_tokenizer, write_files
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the weight files of a checkpoint."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", slow_but("deepseek_v3", "gpt_oss", "mixtral"))
def test_the_command_cuts_the_experts_of_a_checkpoint_in_shards(name, tmp_path):
    """All other tensors stay as they are, byte for byte."""
    source, out = tmp_path / "source", tmp_path / "out"
    mixture_model(name).save_pretrained(source, max_shard_size="40KB")
    call("compress", source, out, "--keep-ratio", "0.5")
    loaded, model = AutoModelForCausalLM.from_pretrained(out), fused_mixture(name)
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    before, after = (tensors_in(folder) for folder in (source, out))
    assert before.keys() == {key for key in after if not key.endswith("cluster_sizes")}
    changed = {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}
    assert all(before[key].shape != after[key].shape or key.endswith("bias") for key in changed)
    assert changed


def test_a_cut_mixture_is_tuned_and_keeps_what_it_learned(tmp_path):
    """The Trainer saves and reads states by names; on disk the experts have others, which it would pass over."""
    source, out, tuned = tmp_path / "source", tmp_path / "out", tmp_path / "tuned"
    mixture_model("mixtral").save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    call("compress", source, out, "--keep-ratio", "0.5")
    train, validation = write_files(tmp_path)
    columns = ["--text-column", "sentence", "--label-column", "label"]
    data = ["--train", train, "--validation", validation, *columns]
    result = call("tune", out, tuned, *data, "--epochs", 2, "--learning-rate", 0.01)
    assert result.exit_code == 0, result.output
    before, after = (AutoModelForSequenceClassification.from_pretrained(one) for one in (out, tuned))
    for layer in range(3):
        old, new = (dict(one.model.layers[layer].mlp.experts.named_parameters()) for one in (before, after))
        assert all(not torch.equal(old[name], new[name]) for name in old)
    sizes = [one.model.layers[0].mlp.experts.cluster_sizes for one in (before, after)]
    assert torch.equal(*sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors[name].view(-1)[3:4].fill_(float("nan")), "must be finite, got 1 NaN or Inf in"),
        (
            lambda tensors, name: tensors.update({name: torch.zeros(40, 32)}),
            r"w1.weight has shape \(40, 32\), the c",
        ),
        (lambda tensors, name: tensors.pop(name), "layers.1.block_sparse_moe.experts.2.w1.weight is missing"),
    ],
)
def test_a_damaged_expert_on_disk_is_named_and_nothing_is_written(change, message, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    mixture_model("mixtral").save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    change(tensors, "model.layers.1.block_sparse_moe.experts.2.w1.weight")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert re.search(message, refused("compress", source, out, "--keep-ratio", "0.5"))
    assert not out.exists()
