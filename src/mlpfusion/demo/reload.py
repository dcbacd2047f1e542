"""Loads saved models like a user, in a fresh process, and compares outputs.

    python -m mlpfusion.demo.reload OUTPUTS FOLDER...

OUTPUTS is a safetensors file with the expected `last_hidden_state` of every model, by name of the
folder. The exit code is 0 if every loaded model gives the same bits.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModel
from transformers.utils import logging

import mlpfusion  # noqa: F401  (lets transformers build the narrower blocks)
from mlpfusion.demo.model import demo_batch, last_hidden_state


def main() -> None:
    """Compares all models named on the command line with their expected outputs."""
    logging.disable_progress_bar()
    expected = load_file(sys.argv[1])
    for folder in map(Path, sys.argv[2:]):
        output = last_hidden_state(AutoModel.from_pretrained(folder), demo_batch(folder))
        if not torch.equal(output, expected[folder.name]):
            sys.exit(f"{folder} gives other outputs")


if __name__ == "__main__":
    main()
