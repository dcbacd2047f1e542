"""The plain loop of training: batches by a seed, and the gradients of one."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from mlpfusion.batch import to_device
from mlpfusion.data.encode import EncodedExamples
from mlpfusion.errors import DivergenceError
from mlpfusion.options.training import Finetune
from mlpfusion.seeds import site_generator

# Texts that are padded together: a batch of 32 in four parts has half of the padding of one.
_PART = 8


def training_batches(
    examples: EncodedExamples, collate: DataCollatorWithPadding, *, steps: int, batch_size: int, seed: int
) -> Iterator[list[Mapping[str, Tensor]]]:
    """The batches of a run, one a step: `examples` in a random order by the seed, in a new one after every epoch.

    A batch comes in parts of texts of like length, which saves half of the work on padding. Batches are not grouped by
    length, as the first steps would be those on the longest texts then.
    """
    generator = site_generator(seed, "order of the training data")
    needed = steps * batch_size
    order: list[int] = []
    while len(order) < needed:
        order += torch.randperm(len(examples), generator=generator).tolist()
    for start in range(0, needed, batch_size):
        batch = sorted(order[start : start + batch_size], key=lambda index: examples.lengths[index])
        yield [
            collate([examples[index] for index in batch[part : part + _PART]]) for part in range(0, len(batch), _PART)
        ]


def backward(model: PreTrainedModel, batch: Sequence[Mapping[str, Tensor]], step: int, learning_rate: float) -> float:
    """The mean loss over the examples of all parts of a batch; its gradients are added to those of the parameters.

    Raises `DivergenceError`, which names the step and the rate, if the loss is not finite.
    """
    total, size = 0.0, sum(len(part["labels"]) for part in batch)
    for part in batch:
        loss = model(**to_device(part, model.device)).loss * (len(part["labels"]) / size)
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise DivergenceError(
            f"`learning_rate` must be small enough for a finite loss, got {learning_rate:g}: "
            f"the loss became {total} in step {step}"
        )
    return total


def adamw(parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with the betas and the epsilon of `Finetune`, without decay."""
    defaults = Finetune()
    betas = (defaults.adam_beta1, defaults.adam_beta2)
    return torch.optim.AdamW(
        parameters, lr=learning_rate, betas=betas, eps=defaults.adam_epsilon, weight_decay=0.0, fused=True
    )
