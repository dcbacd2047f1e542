"""Runs a graph by ONNX Runtime: FOLDER INPUTS OUTPUTS."""

import sys

import onnxruntime  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file, save_file


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    named = {one.name for one in session.get_inputs()}
    given = {name: tensor for name, tensor in load_file(inputs).items() if name in named}
    save_file({"outputs": session.run(None, given)[0]}, outputs)


if __name__ == "__main__":
    main()
