"""A tool that knows sentence-transformers alone: FOLDER INPUTS OUTPUTS. The outputs are the states of the tokens."""

import sys

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    model = SentenceTransformer(folder, device="cpu")
    with torch.no_grad():
        save_file({"outputs": model(load_file(inputs))["token_embeddings"].contiguous()}, outputs)


if __name__ == "__main__":
    main()
