"""Run by the demo in a process of its own: loads the saved model the way a user would, and compares its outputs.

    python -m mlpfusion.demo.reload FOLDER OUTPUTS

OUTPUTS is a safetensors file that holds the `last_hidden_state` of the model that was saved. The exit code is 0 if the
loaded model gives the same bits.
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
    logging.disable_progress_bar()
    folder, outputs = Path(sys.argv[1]), Path(sys.argv[2])
    expected = load_file(outputs)["last_hidden_state"]
    found = last_hidden_state(AutoModel.from_pretrained(folder), demo_batch(folder))
    sys.exit(0 if torch.equal(found, expected) else 1)


if __name__ == "__main__":
    main()
