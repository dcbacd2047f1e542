"""Files of a checkpoint beside its weights: copied along by their names."""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mlpfusion.errors import InputError, one_line
from mlpfusion.storage.listing import LISTING

# Files read by transformers and sentence-transformers are copied, unknown ones are not: OUT is made to be published,
# and a folder may hold anything beside a checkpoint (credentials.json, notes, data). The price: a new kind of file must
# be added here; a test compares the list with the names in transformers.
CARRIED = (
    *("generation_config.json", "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("*vocab*.json", "word_shape.json", "word_pronunciation.json", "normalizer.json", "emoji.json", "byte_maps.json"),
    *("*_config.json", "config_*.json", "chat_template*.json", "modules.json"),
    *("vocab*.txt", "dict*.txt", "merges*.txt", "stopwords.txt", "*.jinja", "*.tiktoken", "*.tokenizer"),
    *("*.model", "tokenizer.model.v*", "*.spm", "*.vocab", "*.bpe", "*.codes"),
    *("LICEN[CS]E*", "*[Ll]icen[cs]e*", "NOTICE*", "[Nn]otice*", "COPYING*", "USE_POLICY*"),
    "mlp_fusion_*record.json",
)
# Known and not copied: other forms of the weights, training states, code, and files that OUT has its own of.
_KNOWN = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.h5", "*.msgpack"),
    *("*.onnx", "*.gguf", "*.pt", "*.pth", "*.ckpt", "*.ot", "*.tflite", "*.mlmodel", "*.npz"),
    *("trainer_state.json", "*.py", "README*", "config.json", LISTING),
    *("report.html", "mlp_fusion_chart.svg"),
)
_MAX_DEPTH = 32  # levels of a JSON file: real configs have below ten, and transformers walks them recursively
_TEMPLATES = "additional_chat_templates"
ADAPTER = "adapter"  # the folder of an adapter beside the model that it was trained for
ADAPTER_BASE = "mlp_fusion_base.json"  # in it: on which weights the adapter lies
# Patterns of files to fetch from the Hub beside the weights.
FETCHED = (*CARRIED, *(f"*/{pattern}" for pattern in CARRIED), "README.md", "config.json", "*/config.json")


def carried_files(folder: Path) -> list[Path]:
    """Lists the files to copy along (tokenizer, licence, modules, ..), sorted by name.

    Raises `InputError` for anything but a plain file inside the checkpoint.

    >>> for name in ("tokenizer.json", "credentials.json"):
    ...     (folder / name).touch()
    >>> [file.name for file in carried_files(folder)]
    ['tokenizer.json']
    """
    files = [file for file in folder.iterdir() if _is_carried(file.name)]
    files += folder.glob(f"{_TEMPLATES}/*.jinja")
    for module in _module_folders(folder):
        files += _module_files(module)
    card = [folder / "README.md"] if (folder / "README.md").exists() else []  # the new card takes over its front matter
    for file in [*files, *card]:
        check_plain_file(folder, file)
    return sorted(set(files))


def left_files(folder: Path) -> list[str]:
    """Names of unknown files beside a checkpoint; they are not copied.

    >>> for name in ("tokenizer.json", "credentials.json"):
    ...     (folder / name).touch()
    >>> left_files(folder)
    ['credentials.json']
    """
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and not file.is_dir()]
    return sorted(file.name for file in files if not _is_carried(file.name) and not _matches(file.name, _KNOWN))


def copy_carried(source: Path, folder: Path) -> None:
    """Copies the files of `carried_files(source)` into `folder`; existing ones stay."""
    for file in carried_files(source):
        target = folder / file.relative_to(source)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def adapter_beside(folder: Path) -> Path | None:
    """Returns the folder of an adapter that belongs to the model in `folder` and is not merged; None without.

    >>> adapter_beside(folder) is None
    True
    """
    base = folder / ADAPTER / ADAPTER_BASE
    return base.parent if base.is_file() and read_json(base).get("is_beside") is True else None


def check_plain_file(folder: Path, file: Path) -> None:
    """Raises `InputError` unless `file` is a plain file in the checkpoint.

    Links may lead to other files of the folder, or to the blobs of the Hub's cache.
    """
    root, target = folder.resolve(), file.resolve()
    if not target.is_file():
        raise InputError(f"{file} must be a plain file")
    places = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(target.is_relative_to(place) for place in places):
        raise InputError(f"{file} must be a file of the checkpoint, got a link out of it; put the file in its place")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `InputError` for a missing file, and for any other content.

    >>> _ = (folder / "data.json").write_text('{"layers": 2}')
    >>> read_json(folder / "data.json")
    {'layers': 2}
    """
    if not path.is_file():
        raise InputError(f"{path.parent} must hold {path.name}, it does not")
    too_deep = f"{path} must be at most {_MAX_DEPTH} levels deep, got more"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} must be JSON: {one_line(error)}") from error
    except RecursionError as error:
        raise InputError(too_deep) from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(data).__name__}")
    if _is_deeper(data, _MAX_DEPTH):
        raise InputError(too_deep)
    return data


def _is_deeper(data: Any, levels: int) -> bool:
    """True if objects and lists are nested more than `levels` deep; without recursion."""
    layer = [data]
    for _ in range(levels):
        holders = [value for value in layer if isinstance(value, dict | list)]
        layer = [part for value in holders for part in (value.values() if isinstance(value, dict) else value)]
    return any(isinstance(value, dict | list) for value in layer)


def _module_folders(folder: Path) -> list[Path]:
    """Folders of the modules of a sentence-transformers model, except the transformer itself.

    Raises `InputError` for a `modules.json` with anything but folders of the checkpoint.
    """
    if not (folder / "modules.json").is_file():
        return []
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names = [module["path"] for module in modules]
    except (ValueError, OSError, RecursionError, TypeError, KeyError) as error:
        raise InputError(f"{folder / 'modules.json'} must be a list of modules with a `path`") from error
    bad = [name for name in names if not isinstance(name, str) or ".." in Path(name).parts or Path(name).is_absolute()]
    if bad:
        raise InputError(f"{folder / 'modules.json'} must name folders in the checkpoint, got {bad[0]!r}")
    return [folder / name for name in names if name and (folder / name).is_dir()]


def _module_files(module: Path) -> list[Path]:
    """Files of one module with its weights; `pytorch_model.bin` only without safetensors.

    Pickled weights are copied here, never read.
    """
    files = [file for file in module.rglob("*") if not file.is_dir() and not file.name.startswith(".")]
    weights = [file for file in files if file.suffix == ".safetensors"]
    weights = weights or [file for file in files if file.name == "pytorch_model.bin"]
    return weights + [file for file in files if file.name == "config.json" or _is_carried(file.name)]


def _is_carried(name: str) -> bool:
    return _matches(name, CARRIED) and not _matches(name, _KNOWN) and not name.startswith(".")


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
