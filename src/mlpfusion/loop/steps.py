"""The training loop of methods and measurements: batches by seed, a backward pass, AdamW."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mlpfusion.batch import to_device
from mlpfusion.data.encode import Collate, EncodedExamples
from mlpfusion.data.language.labels import is_shifted, num_predicted
from mlpfusion.data.language.predicted import head_at_predicted
from mlpfusion.errors import DivergenceError
from mlpfusion.options.training import Finetune
from mlpfusion.seeds import site_generator

# Texts padded together. On SST-2 a batch of 32 in four parts has half the padding (a step 1.9 ->
# 1.0 s).
_PART = 8


def training_batches(
    examples: EncodedExamples, collate: Collate, *, steps: int, batch_size: int, seed: int
) -> Iterator[list[Mapping[str, Tensor]]]:
    """Yields one batch a step, in parts, from examples shuffled anew in every epoch.

    The parts of a batch hold texts of similar length, which halves the padding. Whole batches are
    not grouped by length: the first steps would see the longest texts only.
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
    """Returns the mean loss over the labels of all parts. Adds its gradients to the parameters'.

    Raises `DivergenceError` if the loss is not finite.
    """
    shifted = is_shifted(model.config)
    counts = [num_predicted(part["labels"], shifted=shifted) for part in batch]
    total = 0.0
    for part, count in zip(batch, counts, strict=True):
        with head_at_predicted(model, to_device(part, model.device)) as inputs:
            loss = model(**inputs).loss * (count / sum(counts))
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise DivergenceError(
            f"`learning_rate` must be small enough for a finite loss, got {learning_rate:g}: "
            f"the loss became {total} in step {step}"
        )
    return total


def adamw(parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.AdamW:
    """Makes AdamW with the betas and epsilon of `Finetune`, without weight decay."""
    defaults = Finetune()
    betas = (defaults.adam_beta1, defaults.adam_beta2)
    return torch.optim.AdamW(
        # fused: the update of MiniLM takes 34 ms on a CPU, the default's 207 ms
        parameters,
        lr=learning_rate,
        betas=betas,
        eps=defaults.adam_epsilon,
        weight_decay=0.0,
        fused=True,
    )
