"""Runs an encoder in a GGUF file by llama.cpp: FILE INPUTS OUTPUTS. The outputs are the embedding of the text."""

import os
import sys

import numpy
import xllamacpp  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file, save_file


def main() -> None:
    file, inputs, outputs = sys.argv[1:]
    text = load_file(inputs)["input_ids"][0].tolist()
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = file, 512, 1, -1
    parameters.embedding, parameters.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    answer = server.handle_embeddings({"input": [text]})
    save_file({"outputs": numpy.array(answer["data"][0]["embedding"], dtype=numpy.float32)}, outputs)
    os._exit(0)  # a server of embeddings never ends by itself


if __name__ == "__main__":
    main()
