"""The small GPT-2 that generation is measured on: how it was pretrained, and how far."""

from collections.abc import Mapping
from typing import Any

from page import markdown

_SHOWN = (100, 200, 400, 800, 1600, 2400)  # steps of the loss curve, and the last


def pretraining_table(record: Mapping[str, Any]) -> str:
    """The command, the loss by step, and what came out."""
    losses = dict(map(tuple, record["training_loss"]))
    steps = [*(step for step in _SHOWN if step in losses), max(losses)]
    head, validation = ["step", *(f"{step:,}" for step in steps)], record["validation"]
    return "\n\n".join(
        [
            f"```text\n{record['command']}\n```",
            markdown(head, [["loss", *(f"{losses[step]:.2f}" for step in steps)]]),
            f"{record['windows']:,} windows of {record['window']} tokens, {record['parameters']:,} parameters, "
            f"{record['steps']:,} steps. Perplexity of the validation text {validation['perplexity']:.1f}. SHA-256 of "
            f"`model.safetensors`: `{record['weights_sha256']}`.",
        ]
    )
