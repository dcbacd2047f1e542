"""What tasks share whose labels are tokens: losses, perplexity, and the logits at some tokens."""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedConfig

from mlpfusion.data.language.labels import NOT_PREDICTED, aligned, predicted_labels
from mlpfusion.data.task import Task
from mlpfusion.data.task_kind import ModelNames, TaskKind

CHOICES = ("perplexity", "loss")


class TokenKind(TaskKind):
    """Kinds of tasks with a label a token."""

    row_is_example = False
    answers = 16  # a logit for every word of the vocabulary: 256 tokens of SmolLM2 are 50 MB

    def names(self, config: PreTrainedConfig) -> ModelNames:
        """Those of a causal model, or of one with encoder and decoder."""
        if config.is_encoder_decoder:
            return ModelNames("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", "text2text-generation")
        return ModelNames("CAUSAL_LM", "AutoModelForCausalLM", "text-generation")

    def choices(self, task: Task) -> tuple[str, ...]:
        """Perplexity and loss."""
        return CHOICES

    def evaluation_batch(self, batch_size: int) -> int:
        """As many: their logits are most of the memory, with gradients or without."""
        return batch_size

    def kept(self, logits: Any, labels: Tensor, *, shifted: bool) -> Tensor:
        """Sum of the losses and number of the predicted tokens: (samples, 2).

        With `shifted` the logits are those of `head_at_predicted`.
        """
        logits = logits[0] if isinstance(logits, tuple) else logits
        targets = predicted_labels(labels, shifted=shifted)
        there = targets != NOT_PREDICTED
        count = int(there.sum())
        losses = torch.zeros(targets.shape, dtype=torch.float64, device=labels.device)
        losses[there] = cross_entropy(
            (logits[0, :count] if shifted else logits[there]).float(), targets[there], reduction="none"
        ).double()
        return torch.stack([losses.sum(1), there.sum(1).double()], dim=1)

    def score(self, task: Task, kept: NDArray, labels: NDArray) -> dict[str, float]:
        """Perplexity, and the mean loss in nats a token."""
        loss = float(kept[:, 0].sum() / kept[:, 1].sum())
        return {"perplexity": math.exp(loss), "loss": loss}

    def answer_logits(self, logits: Tensor, labels: Tensor, *, shifted: bool) -> Tensor:
        """Logits at `answers` predicted tokens of each example, evenly spread; all where there are fewer."""
        rows = []
        for row, targets in zip(*aligned(logits, labels, shifted=shifted), strict=True):
            places = (targets != NOT_PREDICTED).nonzero().squeeze(1)
            chosen = torch.linspace(0, len(places) - 1, min(self.answers, len(places))).round().long()
            rows.append(row[places[chosen]])
        return torch.cat(rows)
