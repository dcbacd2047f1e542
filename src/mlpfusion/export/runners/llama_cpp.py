"""Runs a GGUF file by llama.cpp: FILE INPUTS OUTPUTS. The outputs are the log-probabilities after each text."""

import sys

import numpy
import xllamacpp  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file, save_file


def main() -> None:
    file, inputs, outputs = sys.argv[1:]
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel, parameters.verbosity = file, 512, 1, -1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # f16 by default
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(parameters)
    rows = []
    for prompt in load_file(inputs)["input_ids"].tolist():
        asked = {"prompt": prompt, "n_predict": 1, "n_probs": 2**20, "temperature": 0.0, "cache_prompt": False}
        (answer,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        found = {one["id"]: one["logprob"] for one in answer["top_logprobs"]}
        rows.append([found[token] for token in sorted(found)])
    save_file({"outputs": numpy.array(rows, dtype=numpy.float32)}, outputs)


if __name__ == "__main__":
    main()
