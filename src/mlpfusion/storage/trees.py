"""Trees of numbers, text and tensors in JSON and safetensors: the states of training."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mlpfusion.storage.atomic import write_file


def save_tree(tree: Any, folder: Path, name: str) -> None:
    """Writes `tree` as `name.json` and, if there are tensors, `name.safetensors`.

    A tree consists of dictionaries, lists, tuples, numbers, text, None and tensors. Raises
    `TypeError` for anything else.

    >>> save_tree({"step": 3, "loss": [torch.zeros(2)]}, folder, "state")
    >>> load_tree(folder, "state")["loss"][0].tolist()
    [0.0, 0.0]
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(tree, tensors))
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    write_file(folder / f"{name}.json", text + "\n")


def load_tree(folder: Path, name: str) -> Any:
    """Reads a tree written by `save_tree`, with the same types, tensors on the CPU."""
    file = folder / f"{name}.safetensors"
    tensors = load_file(file) if file.exists() else {}
    return _decoded(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _encoded(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        key = str(len(tensors))
        tensors[key] = tree.detach().contiguous()
        return {"tensor": key}
    if isinstance(tree, dict):
        return {"dict": [[key, _encoded(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple):
        return {"tuple": [_encoded(value, tensors) for value in tree]}
    if isinstance(tree, list):
        return [_encoded(value, tensors) for value in tree]
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"a state must be made of plain values and tensors, got {type(tree).__name__}")


def _decoded(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decoded(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(_decoded(item, tensors) for item in value)
    return {key: _decoded(item, tensors) for key, item in value}
