"""What a deployment path is tried on: a checkpoint in one form, and the outputs that are right."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import mlpfusion
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.checkpoint.save import save_model

FORMS = ("fusion", "ntk-match", "folded", "uneven")  # the last two are folded NTKMatch
LAST = {"MiniLM": "last:4", "Llama": "last:2"}  # the layers of the uneven form
KEEP = {"MiniLM": 0.25, "Llama": 0.5}


class NotRunError(Exception):
    """Raised by a path that cannot be run on this machine; the text says why."""


@dataclass(frozen=True)
class Case:
    """A checkpoint of a model in a form; `scratch` is an empty folder."""

    model: str
    form: str
    folder: Path
    scratch: Path

    @property
    def inputs_file(self) -> Path:
        return self.folder.parent / f"{self.model}-inputs.safetensors"

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Three texts of nine tokens."""
        return load_file(self.inputs_file)

    @property
    def expected(self) -> Tensor:
        """Logits, or of MiniLM the last hidden states, in torch and fp32 with this package."""
        return load_file(self.folder.with_suffix(".safetensors"))["outputs"]

    def load(self, **options: Any) -> Any:
        """The model as transformers loads it, in eval mode."""
        kind = AutoModelForCausalLM if self.model == "Llama" else AutoModel
        return kind.from_pretrained(self.folder, **{"dtype": torch.float32} | options).eval()

    def difference(self, outputs: Tensor) -> float:
        """The largest difference from what is expected over the largest number that is."""
        return difference(outputs, self.expected)

    @torch.no_grad()
    def difference_of(self, model: Any) -> float:
        """The same of a model that is run here."""
        return self.difference(model(**self.inputs)[0])

    def difference_by(self, command: Sequence[str]) -> float:
        """The same of a tool that takes FOLDER INPUTS OUTPUTS after `command`."""
        outputs = self.scratch / "outputs.safetensors"
        run([*command, str(self.folder), str(self.inputs_file), str(outputs)])
        return self.difference(load_file(outputs)["outputs"])


# How a path is tried: it raises whatever the tool raises, else returns how far the outputs are from the right ones.
Trial = Callable[[Case], float]


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected number."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found.float() - expected).abs().max() / expected.abs().max())


def run(command: Sequence[str]) -> str:
    """Runs a command, which imports what this process can, and returns what it prints.

    Raises `RuntimeError` with the last of what it says.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(" ".join(done.stderr.strip().splitlines()[-3:]))
    return done.stdout


def make_cases(models: dict[str, str], folder: Path) -> None:
    """Writes the checkpoint of every model in every form below `folder`, with inputs and the right outputs."""
    for name, path in models.items():
        source = open_checkpoint(path)
        inputs, texts = (some_tokens(source.config.vocab_size, shape) for shape in ((3, 9), (16, 32)))
        save_file(inputs, folder / f"{name}-inputs.safetensors")
        for form in FORMS:
            model, layers = source.load().float(), LAST[name] if form == "uneven" else "all"
            if form == "fusion":
                mlpfusion.compress(model, mlpfusion.Fusion(), layers=layers, keep_ratio=KEEP[name])
            else:
                method = mlpfusion.NTKMatch(refine_epochs=1)
                mlpfusion.compress(model, method, layers=layers, keep_ratio=KEEP[name], calibration=[texts])
            if form in ("folded", "uneven"):
                mlpfusion.fold(model)
            save_model(model, source.folder, folder / f"{name}-{form}")
            case = Case(name, form, folder / f"{name}-{form}", folder)
            with torch.no_grad():
                outputs = case.load()(**case.inputs)[0].contiguous()
            save_file({"outputs": outputs}, case.folder.with_suffix(".safetensors"))


def some_tokens(vocabulary: int, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Texts of random tokens, the same ones in every process; the first ids are of special tokens."""
    ids = torch.randint(vocabulary // 8, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def training_batch(case: Case) -> dict[str, Tensor]:
    """Four texts to train on."""
    texts = some_tokens(AutoConfig.from_pretrained(case.folder).vocab_size, (4, 16))
    return texts | {"labels": texts["input_ids"]}


def train(model: Any, batch: dict[str, Tensor], steps: int = 8, rate: float = 1e-2) -> None:
    """Trains what is trainable. Raises `AssertionError` where the loss does not fall, or a constant has moved."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=rate)
    constants = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.dtype == torch.int32}
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    assert all(torch.equal(buffer, constants[name]) for name, buffer in model.named_buffers() if name in constants)


def python(*words: str) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *words]
