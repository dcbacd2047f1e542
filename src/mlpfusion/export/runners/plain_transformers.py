"""Runs a checkpoint by plain transformers in fp32: FOLDER INPUTS OUTPUTS."""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    names = transformers.AutoConfig.from_pretrained(folder).architectures or []
    model = getattr(transformers, names[0]).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        save_file({"outputs": model(**load_file(inputs))[0].contiguous()}, outputs)


if __name__ == "__main__":
    main()
