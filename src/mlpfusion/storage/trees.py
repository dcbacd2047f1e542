"""Trees of numbers, text and tensors in a JSON file and a safetensors file: what a state of training is made of."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mlpfusion.storage.atomic import write_file


def save_tree(tree: Any, folder: Path, name: str) -> None:
    """Writes `name.json`, and `name.safetensors` if there are tensors in `tree`, into `folder`.

    A tree is made of dictionaries, lists, tuples, numbers, text, None and tensors; all else raises a `TypeError`.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(tree, tensors))
    if tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    write_file(folder / f"{name}.json", text + "\n")


def load_tree(folder: Path, name: str) -> Any:
    """The tree that `save_tree` wrote, type for type, its tensors on the CPU."""
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
        return tuple(_decoded(one, tensors) for one in value)
    return {key: _decoded(one, tensors) for key, one in value}
