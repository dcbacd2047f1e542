"""What is tuned or distilled starts from all that the checkpoint has, and what is saved has it still."""

import json
from pathlib import Path

import pytest
import torch
from command import call
from pico import pico_config
from safetensors.torch import load_file, save_file
from tiny_task import TASK, tiny_tokenizer
from transformers import BertForPreTraining, PreTrainedModel

from mlpfusion.checkpoint.open import open_for_training
from mlpfusion.data.task_model import load_for_task


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The layout of the first BERT: a pooler and two heads in the file, a class without the pooler in the config."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForPreTraining._from_config(pico_config("bert"))
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors") | {"old_head.weight": torch.ones(2, 3)}
    save_file(tensors, tmp_path / "model/model.safetensors", {"format": "pt"})
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    return tmp_path / "model"


@pytest.fixture
def fused(checkpoint, tmp_path) -> Path:
    assert call("compress", checkpoint, tmp_path / "fused", "--layers", "last:2", "--keep-ratio", 0.25).exit_code == 0
    return tmp_path / "fused"


def start(folder: Path) -> PreTrainedModel:
    return load_for_task(open_for_training(str(folder)), TASK, seed=5)


def test_the_compressed_and_the_full_model_start_from_the_pooler_of_the_source(checkpoint, fused):
    stored = load_file(checkpoint / "model.safetensors")
    for part in ("weight", "bias"):
        full, compressed = (start(folder).state_dict()[f"bert.pooler.dense.{part}"] for folder in (checkpoint, fused))
        assert torch.equal(full, compressed)
        assert torch.equal(full, stored[f"bert.pooler.dense.{part}"])
    heads = [start(folder).state_dict()["classifier.weight"] for folder in (checkpoint, fused)]
    assert torch.equal(*heads)


@pytest.mark.filterwarnings("ignore::mlpfusion.errors.DamageWarning")
@pytest.mark.parametrize("without", ["nothing", "pooler"])
def test_distilling_keeps_what_its_class_does_not_use_and_invents_nothing(without, checkpoint, fused, tmp_path):
    tensors = load_file(fused / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if without not in name}
    save_file(kept, fused / "model.safetensors", {"format": "pt"})
    config = json.loads((fused / "config.json").read_text())  # the class of a head with a pooler under it
    (fused / "config.json").write_text(json.dumps(config | {"architectures": ["BertForPreTraining"]}))
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"w{number} w{number + 1}\n" for number in range(40)))
    flags = ["--data", texts, "--max-length", 16, "--batch-size", 8, "--learning-rate", "2e-3", "--device", "cpu"]
    result = call("distill", checkpoint, fused, tmp_path / "out", *flags)
    assert result.exit_code == 0, result.output
    before, after = (load_file(folder / "model.safetensors") for folder in (fused, tmp_path / "out"))
    assert after.keys() == before.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("bert.encoder.layer.1.", "bert.encoder.layer.2.")) for name in moved)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (fused, tmp_path / "out")]
    assert configs[0] == configs[1]
