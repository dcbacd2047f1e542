"""Forward time of two models, measured in turns so that a busy machine slows both alike."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


@torch.no_grad()
def forward_seconds(models: Sequence[PreTrainedModel], batch: Mapping[str, Tensor], repeats: int = 5) -> list[float]:
    """Median wall seconds of a forward pass of each model on `batch`, after one pass to warm up."""
    seconds: list[list[float]] = [[] for _ in models]
    for repeat in range(repeats + 1):
        for model, taken in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model(**batch)
            if batch["input_ids"].is_cuda:
                torch.cuda.synchronize()
            if repeat:
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in seconds]
