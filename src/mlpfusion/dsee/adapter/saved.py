"""An adapter of DSEE or LoRA in a folder: read, checked against a model, put on it, saved."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.checkpoint.files import ADAPTER, ADAPTER_BASE, read_json
from mlpfusion.checkpoint.open import Checkpoint
from mlpfusion.checkpoint.weights import StoredTensor, check_whole_file, stored_tensors
from mlpfusion.checks import check_finite, user_path
from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.storage.listing import file_sha256
from mlpfusion.storage.raw import raw_bytes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = ("DSEE", "LORA")


@dataclass(frozen=True)
class AdapterBase:
    """On which weights an adapter lies.

    `weights_sha256` is that of the linear maps under it, `seed` drew what the checkpoint lacked. `is_beside`: the model
    in the folder above has these weights; into another the adapter was merged.
    """

    weights_sha256: str
    seed: int
    is_beside: bool


@dataclass(frozen=True)
class SavedAdapter:
    """A folder with an adapter; `base` is None for one that this package did not save."""

    folder: Path
    config: Any
    tensors: dict[str, StoredTensor]
    base: AdapterBase | None

    @property
    def sha256(self) -> str:
        """Hash of config and weights."""
        files = [file_sha256(self.folder / name) for name in (CONFIG, WEIGHTS)]
        return hashlib.sha256(" ".join(files).encode()).hexdigest()

    @property
    def seed(self) -> int:
        """What drew the tensors that the checkpoint lacked when the adapter was trained."""
        return 0 if self.base is None else self.base.seed

    @property
    def adds_tokens(self) -> bool:
        """True if rows of the embeddings train."""
        return bool(self.config.trainable_token_indices)


def read_adapter(name: str) -> SavedAdapter:
    """Opens the folder of an adapter; of its weights only the header is read.

    Raises `InputError` for a folder that holds none, a damaged file, and a kind that adds no B A to linear maps.
    """
    folder = user_path("adapter", name)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            inner = folder / ADAPTER
            cure = f"; give {inner}" if (inner / CONFIG).is_file() else ""
            raise InputError(f"`adapter` must be a folder with {CONFIG} and {WEIGHTS}, got {name}{cure}")
    data = read_json(folder / CONFIG)
    if data.get("peft_type") not in _KINDS:
        raise InputError(f"`adapter` must be one of {' or '.join(_KINDS)}, got {shown(data.get('peft_type'))}")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise InputError(f"`adapter` must have a config that PEFT reads: {one_line(error)}") from error
    if isinstance(config, LoraConfig):
        _check_plain(config)
    check_whole_file(folder / WEIGHTS)
    return SavedAdapter(folder, config, stored_tensors([folder / WEIGHTS]), read_base(folder))


def read_base(folder: Path) -> AdapterBase | None:
    """Returns on which weights the adapter in `folder` lies, None if nothing says so. Raises `InputError`."""
    file = folder / ADAPTER_BASE
    if not file.is_file():
        return None
    try:
        return AdapterBase(**read_json(file))
    except TypeError as error:
        raise InputError(f"{file} must hold what was written: {one_line(error)}") from error


def check_fits(saved: SavedAdapter, empty: PreTrainedModel) -> Any:
    """Returns the adapted model without numbers; `empty` is on the meta device and becomes a part of it.

    Raises `InputError` unless the adapter has exactly the tensors that the model needs, in their shapes.
    """
    embeddings = tuple(f"base_model.model.{path}." for path in _embedding_paths(empty))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT, on layouts and names
            adapted = get_peft_model(empty, saved.config)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except (ValueError, KeyError, AttributeError) as error:  # AttributeError: a task_type of another class
        raise InputError(f"`adapter` must be one for this model: {one_line(error)}") from error
    for name, tensor in expected.items():
        found = saved.tensors.get(name)
        if found is None or tuple(found.shape) != tuple(tensor.shape):
            got = "none" if found is None else list(found.shape)
            raise InputError(f"`adapter` must be one for this model, {name} of shape {list(tensor.shape)}, got {got}")
    # embeddings are saved whole where the vocabulary grew
    strange = sorted(name for name in saved.tensors.keys() - expected.keys() if not name.startswith(embeddings))
    if strange:
        raise InputError(f"`adapter` must be one for this model, which has no place for {strange[0]}")
    return adapted


def check_not_merged(source: Checkpoint, saved: SavedAdapter) -> None:
    """Raises `InputError` if `source` is the model that the adapter was merged into."""
    above = saved.folder.resolve().parent
    if saved.base is not None and not saved.base.is_beside and above == source.folder.resolve():
        raise InputError(
            f"`model` must be the one that the adapter was trained on, got {source.name}, into which it is merged: "
            "give the model that was tuned"
        )


def put_on(model: PreTrainedModel, saved: SavedAdapter, *, is_trainable: bool) -> Any:
    """Returns `model` with the adapter on it, unmerged. Changes the modules of `model`.

    Raises `InputError` if the adapter was trained on other weights, for NaN or Inf in it, and for values of S outside
    the map.
    """
    for name, tensor in load_file(saved.folder / WEIGHTS).items():
        if tensor.is_floating_point():
            check_finite(tensor, "`adapter`", f" in {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(saved.folder), is_trainable=is_trainable, torch_device="cpu")
    if saved.base is not None and weights_sha256(adapted) != saved.base.weights_sha256:
        raise InputError(
            "`adapter` must lie on the weights that it was trained on, got a model with other ones: another model, or "
            "one into which an adapter is merged; give the model that was tuned"
        )
    for path, layer in adapted.get_base_model().named_modules():
        if isinstance(layer, DseeLayer):
            _check_positions(path, layer)
    return adapted


def save_adapter(adapted: Any, folder: Path, base: AdapterBase, *, adds_tokens: bool) -> None:
    """Writes the adapter, and on which weights it lies, into `folder`."""
    for config in adapted.peft_config.values():
        if config.modules_to_save is not None:  # PEFT adds the names of heads each time it loads an adapter
            config.modules_to_save = list(dict.fromkeys(config.modules_to_save))
    adapted.save_pretrained(folder, save_embedding_layers=adds_tokens)
    write_base(folder, base)


def write_base(folder: Path, base: AdapterBase) -> None:
    """Writes on which weights the adapter in `folder` lies."""
    (folder / ADAPTER_BASE).write_text(json.dumps(asdict(base), indent=2) + "\n", encoding="utf-8")


def weights_sha256(adapted: Any) -> str:
    """Returns the SHA-256 of the frozen linear maps of a `PeftModel`: paths, and numbers in fp32.

    Biases, norms, embeddings and what is tied to them are left out.
    """
    digest, model = hashlib.sha256(), adapted.get_base_model()
    passed = [f"{path}." for path in _embedding_paths(model)]
    for path, module in model.named_modules():
        if f"{path}.".startswith(tuple(passed)):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            passed.append(f"{path}.")
        linear = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(linear, nn.Linear | Conv1D):
            digest.update(f"{path} {tuple(linear.weight.shape)}\n".encode())
            digest.update(raw_bytes(linear.weight.detach().to("cpu", torch.float32)))
    return digest.hexdigest()


def _embedding_paths(model: PreTrainedModel) -> list[str]:
    """Paths of the embeddings and of the head that is made of them."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return [path for path, module in model.named_modules() if any(module is end for end in ends)]


def _check_positions(path: str, layer: DseeLayer) -> None:
    """Raises `InputError` if a value of S lies outside the linear map."""
    shape, omega = layer.dense_weight().shape, layer.update_of("default").omega.to("cpu")
    if bool(((omega < 0) | (omega >= torch.tensor(shape)[:, None])).any()):
        raise InputError(f"`adapter` must have positions inside the {shape[0]} x {shape[1]} entries of {path}")


def _check_plain(config: LoraConfig) -> None:
    """Raises `InputError` for a LoRA that does more than add B A."""
    if config.use_dora:
        raise InputError("`adapter` must be a LoRA that only adds B A, got one with use_dora")
    if not (isinstance(config.init_lora_weights, bool) or config.init_lora_weights == "gaussian"):
        got = f"init_lora_weights={config.init_lora_weights}"
        raise InputError(f"`adapter` must be a LoRA that left the weights as they were, got one with {got}")
