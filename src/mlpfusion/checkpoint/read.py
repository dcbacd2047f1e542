"""Opens checkpoints, folders or Hub ids: safetensors and JSON only, checked before loading."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from mlpfusion.checkpoint.config import CONFIG_ERRORS, read_config
from mlpfusion.checkpoint.files import FETCHED
from mlpfusion.checkpoint.formats.gguf import is_gguf, unpacked
from mlpfusion.checkpoint.weights import INDEX, check_weights, first_misfit, loaded_names, stored_tensors, weight_files
from mlpfusion.checks import check_finite as check_tensor
from mlpfusion.checks import user_path
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.record import Origin
from mlpfusion.sites.mixtures.experts import check_kernel, expert_modules
from mlpfusion.sites.sites import base_prefix

__all__ = [
    "check_finite",
    "check_fit",
    "check_weights",
    "empty_model",
    "load_model",
    "model_class",
    "origin",
    "read_config",
    "resolve",
]


def resolve(model: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """Finds the folder of `model`: a local folder, what is in a GGUF file, or a snapshot of the Hub.

    A snapshot at `revision` is downloaded or taken from the cache; with `weights=False` only the
    small files. Raises `InputError` for an unknown model, and for a `revision` of a folder or file.
    """
    folder = user_path("model", model)
    if model and (folder.is_dir() or is_gguf(folder)):
        if revision is not None:
            kind = "folder" if folder.is_dir() else "file"
            raise InputError(f"`revision` must be left out for a {kind}, got {revision!r} with {model}")
        return folder if folder.is_dir() else unpacked(folder, weights=weights)
    try:
        if folder.is_file():
            raise HFValidationError
        validate_repo_id(model)
    except HFValidationError as error:
        raise InputError(
            f"`model` must be a folder, a GGUF file or a Hub id, got {shown(model)}, which is neither{_cure(model)}"
        ) from error
    patterns = [*FETCHED, "adapter_config.json", *(["*.safetensors", INDEX] if weights else [])]
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"`model` must be a folder or a Hub id that can be reached, got {model!r}: {reason}"
        ) from error


def _cure(model: str) -> str:
    """Guesses the intended model from a URL or the path of a file."""
    if match := re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)", model):
        return f": give the id, {match[1]}"
    return ": give the folder of the file" if user_path("model", model).is_file() else ""


def origin(model: str, revision: str | None, folder: Path) -> Origin:
    """Origin of the checkpoint in `folder`: Hub id and commit, or a folder's name.

    `model` and `revision` are as typed. A snapshot in the Hub's cache is recognised by its path, even
    if typed as a folder.
    """
    place = folder.resolve()
    repository = place.parents[1].name if place.parent.name == "snapshots" else ""
    if re.fullmatch(r"models--[\w.-]+", repository, re.ASCII) and re.fullmatch("[0-9a-f]{40}", place.name):
        return Origin(repository.removeprefix("models--").replace("--", "/", 1), True, revision, place.name)
    if user_path("model", model).exists():
        return Origin(display_name(model), False, None, None)
    return Origin(model, True, revision, None)


def check_finite(file: Path) -> None:
    """Raises `InputError` for NaN or Inf in a weight or bias of a file.

    Buffers may hold infinities (attention masks).
    """
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118, it is no dictionary
            if name.endswith(("weight", "bias")) and (tensor := opened.get_tensor(name)).is_floating_point():
                check_tensor(tensor, "the weights", f" in {name} of {file}")


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Class named in `architectures`, or the class of the base model.

    Only classes in transformers' Auto tables count. Raises `InputError` for any other name.

    >>> model_class(transformers.BertConfig()).__name__
    'BertModel'
    """
    names = getattr(config, "architectures", None) or [_auto_names(config.model_type)[0]]
    if names[0] not in _auto_names(config.model_type):
        raise InputError(f"`architectures` must name a class of transformers for {config.model_type}, got {names[0]!r}")
    return getattr(transformers, names[0])


def empty_model(config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """Builds the model of `config` on the meta device: modules and shapes, no weights.

    Its class is `kind`, or the one in `architectures`. Raises `InputError` for a config without sense.

    >>> empty_model(transformers.BertConfig(num_hidden_layers=1)).device
    device(type='meta')
    """
    kind = kind or model_class(config)
    try:
        with torch.device("meta"):
            return kind(config)
    except CONFIG_ERRORS as error:
        raise InputError(f"config.json must describe a {kind.__name__}, it does not: {one_line(error)}") from error


def check_fit(folder: Path, config: PreTrainedConfig) -> list[Path]:
    """Lists the weight files after a check of all headers and shapes.

    No tensor is read. Raises `InputError` for damaged or pickled weights, and for a tensor of another
    shape than in the config.
    """
    files = check_weights(folder)
    misfit = first_misfit(empty_model(config), stored_tensors(files))
    if misfit is not None:
        raise InputError(f"the weights in {folder} must fit its config.json: {misfit}")
    return files


def load_model(
    folder: Path,
    config: PreTrainedConfig,
    *,
    kind: type[PreTrainedModel] | None = None,
    dtype: torch.dtype | str = "auto",
    left_out: Sequence[str] = (),
    device: str | None = None,
) -> PreTrainedModel:
    """Loads a checkpoint with its weights, in eval mode, on the CPU.

    The class is `kind`; by default the one in `architectures`, or the base model if the files lack
    the head (so nothing but a pooler is invented). Tensors of `kind` missing in the files, and those
    named in `left_out`, are drawn from the global random stream. The dtype is that of the files unless
    given. With `device="meta"` no number is read, only headers. Raises `InputError` for weights that do not fit the
    config, a missing weight of the base model, and experts in a dtype that their kernel refuses.
    """
    model, drawn = _load(folder, config, kind or model_class(config), dtype, left_out, device)
    poolers = [name for name in drawn if is_pooler(name.removeprefix(base_prefix(model)))]
    if kind is None and len(drawn) > len(poolers) and type(model) is not base_class(config):
        model, _ = _load(folder, config, base_class(config), dtype, device=device)
    for path, experts in expert_modules(model).items():
        check_kernel(path, experts)
    if kind is not None and poolers:  # the head of `kind` may stand on it
        warnings.warn(f"the checkpoint has no pooler, it was drawn at random: {_some(poolers)}", stacklevel=2)
    return model


def _load(
    folder: Path,
    config: PreTrainedConfig,
    kind: type[PreTrainedModel],
    dtype: torch.dtype | str,
    left_out: Sequence[str] = (),
    device: str | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Returns (model, names of the weights drawn at random)."""
    options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if device is not None:
        options["device_map"] = device
    if left_out:
        options["state_dict"] = _tensors_without(folder, left_out, empty_model(config, kind))
    place = None if left_out else folder
    try:
        loaded: Any = kind.from_pretrained(place, output_loading_info=True, **options)
    except InputError:
        raise
    except (*CONFIG_ERRORS, SafetensorError) as error:
        reason = _misfit(folder, config, kind) or one_line(error)
        raise InputError(f"the weights in {folder} must fit its config.json: {reason}") from error
    model, info = loaded
    prefix = base_prefix(model)
    missing = {name: name.removeprefix(prefix) for name in info["missing_keys"]}
    base = _base_names(config)
    lost = sorted(name for name, short in missing.items() if short in base and not is_pooler(short))
    if lost:
        raise InputError(f"the checkpoint must hold all weights of the base model, it lacks {_some(lost)}")
    _check_unexpected(model, info["unexpected_keys"])
    return model, sorted(missing)


def base_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Class of the base model, without a head."""
    return getattr(transformers, _auto_names(config.model_type)[0])


def _base_names(config: PreTrainedConfig) -> set[str]:
    return set(empty_model(config, base_class(config)).state_dict())


def is_pooler(name: str) -> bool:
    """True for a module of a pooler, or a tensor in one; checkpoints of some heads lack it.

    >>> is_pooler("pooler.dense.weight")
    True
    """
    return "pooler" in name.partition(".")[0]


def _misfit(folder: Path, config: PreTrainedConfig, kind: type[PreTrainedModel]) -> str | None:
    try:
        return first_misfit(empty_model(config, kind), stored_tensors(weight_files(folder)))
    except InputError:
        return None


def _check_unexpected(model: PreTrainedModel, names: set[str]) -> None:
    """Raises `InputError` for tensors of unknown layers; other unexpected tensors are fine."""
    base = model.base_model
    lists = {f"{path}." for path, module in base.named_modules() if isinstance(module, nn.ModuleList)}
    short = {name: name.removeprefix(f"{model.base_model_prefix}.") for name in names}
    strange = sorted(name for name, rest in short.items() if any(_is_in(rest, path) for path in lists))
    if strange:
        raise InputError(f"config.json must describe all layers of the weights, there is no place for {_some(strange)}")


def _is_in(name: str, layers: str) -> bool:
    """True for a weight or bias in a layer of `layers`; older versions saved buffers too."""
    rest = name.removeprefix(layers)
    return rest != name and rest.partition(".")[0].isdigit() and name.endswith(("weight", "bias"))


def _some(names: list[str]) -> str:
    """Number of names, and the first three.

    >>> _some(["a", "b", "c", "d"])
    '4: a, b, c, ..'
    """
    return f"{len(names)}: " + ", ".join(names[:3]) + (", .." if len(names) > 3 else "")


def _tensors_without(folder: Path, left_out: Sequence[str], model: PreTrainedModel) -> dict[str, Tensor]:
    """Reads all tensors in the files, except those named `left_out` in `model`."""
    stored = stored_tensors(weight_files(folder))
    tensors: dict[str, Tensor] = {}
    for name, loaded in loaded_names(model, stored).items():
        if loaded not in left_out:
            with safe_open(stored[name].file, framework="pt") as opened:
                tensors[name] = opened.get_tensor(name)
    return tensors


def _auto_names(model_type: str) -> list[str]:
    """Names of transformers' classes for a `model_type`, the base model first."""
    tables = [modeling_auto.MODEL_MAPPING_NAMES]
    tables += [
        table
        for name, table in vars(modeling_auto).items()
        if name.endswith("_MAPPING_NAMES") and name != "CONFIG_MAPPING_NAMES"
    ]
    names: list[str] = []
    for table in tables:
        entry = table.get(model_type, ())
        names += [entry] if isinstance(entry, str) else entry
    if not names:
        raise InputError(f"`model_type` must be one that an Auto class of transformers loads, got {model_type!r}")
    return names


def display_name(model: str) -> str:
    """Name of a checkpoint for records and cards, without a path of this machine.

    >>> display_name("FacebookAI/roberta-base")
    'FacebookAI/roberta-base'
    """
    place = user_path("model", model)
    return place.resolve().name if place.exists() else model
