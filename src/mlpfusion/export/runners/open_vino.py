"""Runs a graph by OpenVINO in fp32: FOLDER INPUTS OUTPUTS."""

import sys
from pathlib import Path

import openvino  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file, save_file


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    (graph,) = Path(folder).glob("*.xml")
    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    named = {name for one in model.inputs for name in one.names}
    given = {name: tensor for name, tensor in load_file(inputs).items() if name in named}
    save_file({"outputs": next(iter(model(given).values()))}, outputs)


if __name__ == "__main__":
    main()
