"""A checkpoint of a pico model with an adapter for it in a folder, without a run of training."""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.adapter.saved import AdapterBase, save_adapter, weights_sha256
from mlpfusion.options.adapters.dsee import Support
from mlpfusion.seeds import seeded

IDS = torch.tensor([[1, 5, 9, 33, 2], [1, 7, 60, 2, 0]])


def dsee(**changes: Any) -> DseeConfig:
    return DseeConfig(**{"r": 4, "support": Support(sparse=8, omega="random"), "task_type": "SEQ_CLS"} | changes)


def under_adapter(model: Path, config: Any, num_labels: int = 2, seed: int = 0) -> Any:
    """The model of a checkpoint under an adapter with other numbers in all that trains.

    `seed` draws A and what the checkpoint lacks.
    """
    with seeded(seed):
        base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=num_labels)
        adapted: Any = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapted.eval()


def saved_adapter(model: Path, folder: Path, config: Any = None, seed: int = 0) -> Path:
    """The adapter of `under_adapter` as `tune` leaves it."""
    adapted = under_adapter(model, config or dsee(), seed=seed)
    save_adapter(adapted, folder, AdapterBase(weights_sha256(adapted), seed, is_beside=False), adds_tokens=False)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, attention_mask=(IDS != 0).long()).logits
