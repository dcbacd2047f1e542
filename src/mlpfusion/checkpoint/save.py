"""Writes checkpoints: unchanged tensors keep the names and bytes of the source."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import WeightConverter, revert_weight_conversion

from mlpfusion.checkpoint.config import CONFIG, config_data
from mlpfusion.checkpoint.files import copy_carried
from mlpfusion.checkpoint.read import empty_model
from mlpfusion.checkpoint.weights import (
    INDEX,
    WEIGHTS,
    StoredTensor,
    loaded_names,
    stored_size,
    stored_tensors,
    weight_files,
)
from mlpfusion.errors import InputError
from mlpfusion.heads.key import KEY as HEADS
from mlpfusion.heads.sites import find_heads
from mlpfusion.kinds.key import key_from_dict, key_to_dict
from mlpfusion.kinds.kind import KEY
from mlpfusion.kinds.rebuild import installed_sites
from mlpfusion.record import Record, Size
from mlpfusion.sites.sites import Site, base_prefix, linear_maps, module_paths

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_model(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Saves `model` into `folder`, with tokenizer and other small files of `source`."""
    model.save_pretrained(folder)
    _make_readable(folder)
    copy_carried(source, folder)


class CutFiles:
    """The files of `source` when other tensors take the places of those of the modules at `paths` from the base model.

    All others stay as they are, byte for byte, in the same files. `original` is the model of `source` as its class
    makes it; it may be on the meta device.
    """

    def __init__(self, original: PreTrainedModel, source: Path, paths: Iterable[str]):
        self._original, self._source = original, source
        self._stored = stored_tensors(weight_files(source))
        self.size = stored_size(self._stored, original)
        starts = _starts(original, paths)
        names = loaded_names(original, self._stored)
        self._cut = {name: loaded for name, loaded in names.items() if loaded is not None and loaded.startswith(starts)}

    def named(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the compressed `model` by the names and in the dtypes of the files."""
        named = _file_names(model, tensors, self._cut)
        return {name: _as_stored(tensor, self._stored[_nearest(name, self._cut)]) for name, tensor in named.items()}

    def write(
        self, folder: Path, new: Mapping[str, Tensor], entries: Mapping[str, Any], model: PreTrainedModel
    ) -> Size:
        """Writes the files with `new`, all tensors of the modules, into `folder`; config.json gains `entries`.

        Returns the size of the files. `model` may be on the meta device.
        """
        _write_tensors(folder, self._stored, self._cut.keys(), new)
        _write_config(folder, config_data(self._source) | dict(entries))
        _make_readable(folder)
        copy_carried(self._source, folder)
        return stored_size(stored_tensors(weight_files(folder)), model)

    def size_with(self, new: Mapping[str, Tensor], model: PreTrainedModel) -> Size:
        """The size of the files that `write` makes; `new` and `model` may be on the meta device."""
        kept = {name: stored for name, stored in self._stored.items() if name not in self._cut}
        homes = {name: self._stored[_nearest(name, self._cut)].file for name in new}
        return stored_size(kept | {name: _header(tensor, homes[name]) for name, tensor in new.items()}, model)


def _header(tensor: Tensor, file: Path) -> StoredTensor:
    """What a file would say of a tensor."""
    dtype = next((name for name, one in _DTYPES.items() if one == tensor.dtype), str(tensor.dtype))
    return StoredTensor(file, dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size())


def _starts(model: PreTrainedModel, paths: Iterable[str]) -> tuple[str, ...]:
    """How the names of the tensors start in `model` that are in the modules at `paths`."""
    return tuple(dict.fromkeys(f"{base_prefix(model)}{path}." for path in paths))


def block_paths(sites: Iterable[Site]) -> list[str]:
    """Paths of the modules with the numbers of the blocks at `sites`."""
    return [path for site in sites for path in module_paths(site)]


def save_compressed(
    model: PreTrainedModel, source: Path, config: PreTrainedConfig, record: Record, folder: Path
) -> Record:
    """Writes `source` with the compressed MLPs of `model` into `folder`.

    Returns the record with the sizes of the files. All other tensors are those of `source`, byte
    for byte, in the same files; config.json gains the key `mlp_fusion`.
    """
    key = key_from_dict(getattr(model.config, KEY))
    sites = installed_sites(model, key)
    assert all(_tensors_at(model, [path]) for site in sites for path in linear_maps(site))
    paths = block_paths(sites)
    files = CutFiles(empty_model(config, type(model)), source, paths)
    tensors = files.named(model, _tensors_at(model, paths))
    compressed = files.write(folder, tensors, {KEY: key_to_dict(key)}, model)
    return replace(record, original=files.size, compressed=compressed)


def save_sliced(model: PreTrainedModel, source: Path, config: PreTrainedConfig, folder: Path) -> tuple[Size, Size]:
    """Writes `source` without the heads that `model` lost into `folder`; returns the sizes before and after.

    `config` is that of `source`. All other tensors are those of `source`, byte for byte, in the same files; config.json
    gains the key `mlp_fusion_heads`.
    """
    paths = [path for site in find_heads(model) for path in site.maps]
    files = CutFiles(empty_model(config, type(model)), source, paths)
    tensors = files.named(model, _tensors_at(model, paths))
    return files.size, files.write(folder, tensors, {HEADS: getattr(model.config, HEADS)}, model)


def _tensors_at(model: PreTrainedModel, paths: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of the modules at `paths` from the base model, by their names in `model`."""
    starts = _starts(model, paths)
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(starts)}


def save_trained(model: PreTrainedModel, source: Path, folder: Path, *, new_head: bool) -> None:
    """Writes `model`, trained from `source`, into `folder`.

    Tensors of `source` outside the class of the model are copied. With `new_head` the head is
    written even if `source` had none, and `architectures` is the class of the model.
    """
    stored = stored_tensors(weight_files(source))
    names = loaded_names(model, stored)
    known = set(names.values())
    trained = {name: tensor for name, tensor in _untied(model, known).items() if new_head or name in known}
    replaced = {name: loaded for name, loaded in names.items() if loaded is not None}
    _write_tensors(folder, stored, set(replaced), _file_names(model, trained, replaced))
    if new_head:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)
    else:
        data = {name: value for name, value in config_data(source).items() if name not in ("torch_dtype", "dtype")}
        _write_config(folder, data | {"dtype": str(model.dtype).removeprefix("torch.")})
    _make_readable(folder)
    copy_carried(source, folder)


def _untied(model: PreTrainedModel, known: set[str | None]) -> dict[str, Tensor]:
    """Drops tensors with shared memory; keeps those in `known`, else the first."""
    tensors, seen = model.state_dict(), set()
    for name in sorted(tensors, key=lambda name: name not in known):
        if name not in known and tensors[name].data_ptr() in seen and tensors[name].numel():
            del tensors[name]
        else:
            seen.add(tensors[name].data_ptr())
    return tensors


def _file_names(model: PreTrainedModel, tensors: dict[str, Tensor], old: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of `model` by their names in the files.

    `old` maps names in the files of the source to names in the model; these names are kept. New
    tensors are named like transformers saves them, with the prefix of the base model if the old
    ones have it. Raises `InputError` if transformers would not load a tensor by its name.
    """
    places: dict[str, list[str]] = {}
    for name, loaded in old.items():
        places.setdefault(loaded, []).append(name)
    conversions = getattr(model, "_weight_conversions", None) or ()
    converted = any(isinstance(conversion, WeightConverter) for conversion in conversions)
    named = {} if converted else {place: tensors[name] for name in tensors for place in places.get(name, ())}
    rest = tensors if converted else {name: tensor for name, tensor in tensors.items() if name not in places}
    saved = revert_weight_conversion(model, rest)
    prefix = f"{model.base_model_prefix}."
    lead = prefix if any(name.startswith(prefix) for name in old) else ""
    styled = {name: lead + name.removeprefix(prefix) for name in saved}
    loaded = loaded_names(model, [*styled.values(), *saved])
    for name, tensor in saved.items():
        place = styled[name] if loaded[styled[name]] is not None else name
        if loaded[place] is None:
            raise InputError(f"the checkpoint must have a name for {name} that transformers loads, found none")
        named[place] = tensor
    return named


def _nearest(name: str, old: Collection[str]) -> str:
    """Finds `name` in `old`, or the most similar one, to take file and dtype from."""
    return name if name in old else max(sorted(old), key=lambda other: _shared_parts(name, other))


def _shared_parts(first: str, second: str) -> int:
    pairs = zip(first.split("."), second.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _as_stored(tensor: Tensor, stored: StoredTensor) -> Tensor:
    """Casts to the dtype in the file; whole numbers (cluster sizes, routers) stay."""
    dtype = _DTYPES.get(stored.dtype)
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _write_tensors(
    folder: Path, stored: dict[str, StoredTensor], old: Collection[str], new: Mapping[str, Tensor]
) -> None:
    """Writes the files of `stored` one by one, with `new` in place of `old`."""
    homes = {name: stored[_nearest(name, old)].file for name in new}
    weight_map: dict[str, str] = {}
    files = sorted({tensor.file for tensor in stored.values()})
    for file in files:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {"format": "pt"}
            names = [name for name, tensor in stored.items() if tensor.file == file and name not in old]
            tensors = {name: opened.get_tensor(name) for name in names}
            tensors |= {name: tensor.cpu().contiguous() for name, tensor in new.items() if homes[name] == file}
            save_file(_unshared(tensors), folder / file.name, metadata)
        weight_map |= dict.fromkeys(tensors, file.name)
    if [file.name for file in files] != [WEIGHTS]:
        size = sum(tensor.num_bytes for tensor in stored_tensors(folder / file.name for file in files).values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors with shared memory, because safetensors refuses them."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        apart[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    return apart


def _write_config(folder: Path, data: dict[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _make_readable(folder: Path) -> None:
    """Gives the weights the permissions of config.json (safetensors makes them private)."""
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / CONFIG).stat().st_mode)
