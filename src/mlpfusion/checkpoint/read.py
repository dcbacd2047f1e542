"""Opens a checkpoint: a folder or a Hub id, safetensors and JSON only, checked before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from mlpfusion.errors import InputError, one_line
from mlpfusion.finite import check_weight

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")


def resolve(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of `model`: itself if it is one, else the Hub's snapshot at `revision` (downloaded or cached).

    With `weights=False` only the small files are fetched. Raises `InputError` if there is no such model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        validate_repo_id(model)
    except HFValidationError as error:
        raise InputError(f"`model` must be a folder or a Hub id, got {model!r}, which is neither") from error
    patterns = [*TEXT_FILES, "*.safetensors"] if weights else [*TEXT_FILES]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"`model` must be a folder or a Hub id that can be reached, got {model!r}: {reason}"
        ) from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint. Code named in it is never run. Raises `InputError` if it is missing or malformed."""
    data = _read_json(folder / "config.json")
    if not isinstance(data.get("model_type"), str):
        raise InputError(f"{folder / 'config.json'} must name a `model_type`, got {data.get('model_type')!r}")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        where = folder / "config.json"
        raise InputError(f"{where} must be a config that transformers knows: {one_line(error)}") from error


def check_weights(folder: Path) -> list[Path]:
    """The weight files, after a check of every header against its file's length; no tensor is read.

    Raises `InputError` for pickled weights only, a missing shard, or a damaged or truncated file.
    """
    files = _weight_files(folder)
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                opened.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} must be a whole safetensors file: {one_line(error)}") from error
    return files


def check_finite(file: Path) -> None:
    """Raises `InputError` for NaN or Inf in a weight or bias of a safetensors file; a buffer may hold infinities."""
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118, it is no dictionary
            if name.endswith(("weight", "bias")) and (tensor := opened.get_tensor(name)).is_floating_point():
                check_weight(tensor, f"{name} of {file}")


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class named in `architectures`, looked up in transformers' own Auto tables only; the base model without one.

    Raises `InputError` if transformers lists no such class for this `model_type`.
    """
    names = getattr(config, "architectures", None) or [_auto_names(config.model_type)[0]]
    if names[0] not in _auto_names(config.model_type):
        raise InputError(f"`architectures` must name a class of transformers for {config.model_type}, got {names[0]!r}")
    return getattr(transformers, names[0])


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of `config` without memory for its weights: modules and shapes only."""
    with torch.device("meta"):
        return model_class(config)(config)


def load_model(
    folder: Path,
    config: PreTrainedConfig,
    *,
    kind: type[PreTrainedModel] | None = None,
    dtype: torch.dtype | str = "auto",
) -> PreTrainedModel:
    """The checkpoint's own model class, or `kind`, with its weights, in eval mode, on the CPU.

    The dtype is that of the file unless given. What a head of `kind` lacks is drawn from the global random stream.
    Raises `InputError` if weights do not fit the config, or if an MLP's weights are missing.
    """
    options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    try:
        loaded: Any = (kind or model_class(config)).from_pretrained(folder, output_loading_info=True, **options)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise InputError(f"the weights in {folder} must fit its config.json: {one_line(error)}") from error
    model, info = loaded
    base = f"{model.base_model_prefix}."
    missing = sorted(name.removeprefix(base) for name in info["missing_keys"])
    layers = [name for name in missing if any(part.isdigit() for part in name.split("."))]
    if layers:
        raise InputError(
            f"the checkpoint must hold the weights of every layer, it lacks {len(layers)}: {layers[0]}, .."
        )
    return model


def _auto_names(model_type: str) -> list[str]:
    """Names of the model classes that transformers' Auto tables list for a `model_type`, the base model first."""
    tables = [modeling_auto.MODEL_MAPPING_NAMES]
    tables += [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    names: list[str] = []
    for table in tables:
        entry = table.get(model_type, ())
        names += [entry] if isinstance(entry, str) else entry
    if not names:
        raise InputError(f"`model_type` must be one that transformers has a model for, got {model_type!r}")
    return names


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).exists():
        shards = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
        bad = [name for name in shards if name != Path(name).name or not (folder / name).is_file()]
        if bad or not shards:
            raise InputError(f"{folder / INDEX} must name files beside it, got {bad[0] if bad else 'none'}")
        return [folder / name for name in shards]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    raise InputError(f"{folder} must hold {WEIGHTS} or {INDEX}; pickled weights are never read, convert them first")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent} must hold {path.name}, it does not")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} must be JSON: {one_line(error)}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data
