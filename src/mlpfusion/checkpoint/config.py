"""Reads config.json of untrusted origin: no code runs, no number costs time or memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from mlpfusion.checkpoint.files import check_plain_file, read_json
from mlpfusion.checkpoint.quantisation import check_not_quantised
from mlpfusion.errors import InputError, one_line, shown

CONFIG = "config.json"
# Raised by transformers, over all model types, for a config without sense or with a missing package.
CONFIG_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(ImportError, MemoryError, OSError, StrictDataclassError),
)
# Building a config or a model loops over these numbers in Python. The largest models have 128 layers, 16,384 experts a
# layer and 22,000 labels; the caps leave room and keep the loops below some seconds. Bytes: of config.json.
_MOST_LABELS, _MOST_LAYERS, _MOST_EXPERTS, _MOST_BYTES = 1_000_000, 4096, 2**14, 64 * 2**20
_LOOPED = ("layer", "block", "depth", "stage", "experts", "codebooks")
_NO_LOOP = ("_size", "_dim", "_token_id", "theta")  # as in `vocab_size_per_layer_input` and `layer_rope_theta`


def read_config(folder: Path, *, allow_quantised: bool = False) -> PreTrainedConfig:
    """Reads the config of a checkpoint, without running code named in it.

    Raises `InputError` for a missing or malformed config, and for quantised weights unless allowed.
    """
    data = config_data(folder)
    where = folder / CONFIG
    if not isinstance(data.get("model_type"), str):
        raise InputError(f"{where} must name a `model_type`, got {shown(data.get('model_type'))}")
    names = data.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"`architectures` of {where} must be a list of names, got {shown(names)}")
    for name, value in _entries(data):
        _check_entry(where, name, value)
    if "auto_map" in data and data["model_type"] not in CONFIG_MAPPING:
        raise InputError(
            f"`model_type` must be one of transformers' own, got {shown(data['model_type'])}, whose code is in files "
            f"beside {where} (`auto_map`): such code is not run"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except CONFIG_ERRORS as error:
        raise InputError(f"{where} must be a config that transformers knows: {one_line(error)}") from error
    if not allow_quantised:
        check_not_quantised(config, f" in {folder}")
    return config


def config_data(folder: Path) -> dict[str, Any]:
    """Reads config.json as a dict. Raises `InputError` without the file, or for an adapter."""
    where = folder / CONFIG
    if (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} must be a full model without an adapter, it holds adapter_config.json: merge the adapter "
            "into its base first (PEFT: `model.merge_and_unload().save_pretrained(new_folder)`)"
        )
    if not where.is_file():
        raise InputError(f"{folder} must hold config.json, it does not{_subfolders(folder)}")
    check_plain_file(folder, where)
    if where.stat().st_size > _MOST_BYTES:
        raise InputError(f"{where} must be at most {_MOST_BYTES:,} bytes, got {where.stat().st_size:,}")
    return read_json(where)


def _check_entry(where: Path, name: str, value: Any) -> None:
    if name == "transformers_weights":  # transformers would load unchecked files
        raise InputError(
            f"{where} must not name `transformers_weights`, got {shown(value)}: name the file model.safetensors"
        )
    if name.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):  # code from the Hub
        raise InputError(f"{where} must name an implementation of transformers as `{name}`, got {shown(value)}")
    most = _MOST_LABELS if name == "num_labels" else _MOST_LAYERS if any(word in name for word in _LOOPED) else None
    most = _MOST_EXPERTS if name == "num_experts" else most
    if most is None or any(word in name for word in _NO_LOOP):
        return
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and number > most:
            raise InputError(f"`{name}` of {where} must be at most {most:,}, got {float(number):.15g}")


def _entries(data: Any) -> Iterator[tuple[str, Any]]:
    """Yields every name in nested objects and lists, with its value; without recursion."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from ((str(name), part) for name, part in value.items())
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _subfolders(folder: Path) -> str:
    """Hint at a model one folder down, as in old checkpoints of sentence-transformers."""
    folders = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}") if "model_type" in read_json(path))
    return f"; its folder {folders[0]} does" if folders else ""
