"""Time of models, measured in turns so that a busy machine slows all alike, and the FLOPs that a step needs."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

# What is timed; what it returns is thrown away.
Step = Callable[[], object]


def seconds_in_turns(steps: Sequence[Step], repeats: int = 5, warm_up: int = 1) -> list[list[float]]:
    """Wall seconds of every run of each step: `warm_up` runs of each that do not count, then `repeats` in turns.

    Waits for the GPU, if there is one that was used, before the clock stops.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for repeat in range(warm_up + repeats):
        for step, taken in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if repeat >= warm_up:
                taken.append(time.perf_counter() - started)
    return seconds


def forward_seconds(models: Sequence[PreTrainedModel], batch: Mapping[str, Tensor], repeats: int = 5) -> list[float]:
    """Median wall seconds of a forward pass of each model on `batch`, after one pass to warm up."""

    def forward(model: PreTrainedModel) -> Step:
        return lambda: model(**batch)

    with torch.no_grad():
        taken = seconds_in_turns([forward(model) for model in models], repeats)
    return [statistics.median(one) for one in taken]


def training_step(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, autocast: torch.dtype | None = None
) -> Callable[[], Tensor]:
    """One optimiser step on `batch`, which holds `labels`: forward, backward, AdamW; every call trains `model`.

    AdamW is torch's fused one, as in transformers' Trainer. The model keeps its mode (dropout). `autocast` is the
    dtype of the arithmetic if it is another than that of the weights. The call gives the loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> Tensor:
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            loss = cast(Tensor, model(**batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def training_step_flops(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """FLOPs of a forward and a backward pass on `batch` by torch's counter: matrix products, two FLOPs each.

    `model` and `batch` may be on the meta device, then nothing is computed. The model must have eager attention: the
    counter knows no other one on the CPU. Leaves the gradients of the model empty.
    """
    assert model.config._attn_implementation == "eager", model.config._attn_implementation
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()
