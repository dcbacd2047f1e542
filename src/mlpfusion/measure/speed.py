"""Time per forward pass and training step, and the FLOPs of a step.

Models are timed in turns, so that a busy machine slows all of them alike.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

# A callable to be timed; its result is thrown away.
Step = Callable[[], object]


def seconds_in_turns(steps: Sequence[Step], repeats: int = 5, warm_up: int = 1) -> list[list[float]]:
    """Times `repeats` runs of each step, in turns.

    `warm_up` untimed runs of each come first. The clock stops after the GPU has finished, if CUDA
    was used.

    >>> [len(seconds) for seconds in seconds_in_turns([lambda: 0, lambda: 1], repeats=3)]
    [3, 3]
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
    """Median wall seconds of a forward pass of each model."""

    def forward(model: PreTrainedModel) -> Step:
        return lambda: model(**batch)

    with torch.no_grad():
        taken = seconds_in_turns([forward(model) for model in models], repeats)
    return [statistics.median(seconds) for seconds in taken]


def training_step(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, autocast: torch.dtype | None = None
) -> Callable[[], Tensor]:
    """Makes a function of one optimiser step on `batch`: forward, backward, AdamW.

    Every call trains `model` and returns the loss; `batch` needs `labels`. AdamW is torch's fused
    one, as in transformers' Trainer. The mode of the model (dropout) stays. `autocast`: dtype of
    the arithmetic.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # any small rate: only the time counts

    def step() -> Tensor:
        with torch.autocast(model.device.type, autocast, enabled=autocast is not None):
            loss = cast(Tensor, model(**batch).loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def training_step_flops(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Counts FLOPs of the matrix products of a forward and a backward pass.

    A multiplication and an addition are two FLOPs. On the meta device nothing is computed. The
    model must have eager attention (the counter knows no other on the CPU). The gradients of the
    model are cleared.
    """
    assert model.config._attn_implementation == "eager", model.config._attn_implementation
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    model.zero_grad()
    return counter.get_total_flops()
