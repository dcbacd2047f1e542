"""Runs a program by ExecuTorch: FOLDER INPUTS OUTPUTS."""

import json
import sys
from pathlib import Path

from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file


def main() -> None:
    folder, inputs, outputs = sys.argv[1:]
    traced = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))["components"]["model"]
    method = Runtime.get().load_program(Path(folder) / traced["file"]).load_method("forward")
    given = load_file(inputs)
    # A program knows its inputs by their order only.
    save_file({"outputs": method.execute([given[name] for name in traced["metadata"]["kwargs"]])[0]}, outputs)


if __name__ == "__main__":
    main()
