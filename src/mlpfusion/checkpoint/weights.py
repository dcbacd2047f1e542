"""Tensors in the files of a checkpoint, and their names in the model."""

import json
import math
import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from mlpfusion.checkpoint.files import check_plain_file, read_json
from mlpfusion.errors import DamageWarning, InputError, one_line, shown
from mlpfusion.record import Size
from mlpfusion.storage.listing import is_changed

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of plain weights, in the words of safetensors
_CONVERT = (
    "`AutoModel.from_pretrained(folder).save_pretrained(new_folder)` of transformers makes safetensors of them, "
    "with the class that you use in place of AutoModel; then copy the tokenizer's files"
)


@dataclass(frozen=True)
class StoredTensor:
    """Header entry of a tensor in a safetensors file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def is_floating_point(self) -> bool:
        """True for any float type, those of quantisers included."""
        return self.dtype.startswith(("F", "BF"))


def check_weights(folder: Path) -> list[Path]:
    """Lists the weight files in loading order, after a check of every header.

    No tensor is read. Warns of a file changed since this program wrote it. Raises `InputError` for
    pickled weights, a missing shard, a tensor in two shards, a file outside the folder, a damaged
    or truncated file, and a weight in a dtype of quantisers.
    """
    files = weight_files(folder)
    for file in files:
        check_plain_file(folder, file)
        check_whole_file(file)
        if is_changed(folder, file.name):
            warnings.warn(
                f"{file} is not the file that was written (its SHA-256 is another): it is damaged, unless you put "
                "another in its place",
                DamageWarning,
                stacklevel=2,
            )
    for name, stored in stored_tensors(files).items():
        # Only matrices: a router's buffer named `weight` holds one whole number.
        if name.endswith("weight") and len(stored.shape) > 1 and stored.dtype not in FLOATS:
            allowed = ", ".join(FLOATS)
            raise InputError(f"{stored.file} must hold plain weights ({allowed}), got {stored.dtype} for {name}")
    return files


def check_whole_file(file: Path) -> None:
    """Raises `InputError` for a damaged or truncated safetensors file. Reads the header alone."""
    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} must be a whole safetensors file: {one_line(error)}") from error


def weight_files(folder: Path) -> list[Path]:
    """Lists the single weight file, else the shards of the index.

    Raises `InputError` without either.

    >>> (folder / WEIGHTS).touch()
    >>> [file.name for file in weight_files(folder)]
    ['model.safetensors']
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map")
        names = list(weight_map.values()) if isinstance(weight_map, dict) else []
        bad = [name for name in names if not _is_beside(folder, name)]
        if bad or not names:
            raise InputError(f"{folder / INDEX} must name files beside it, got {shown(bad[0]) if bad else 'none'}")
        if not isinstance(index.get("metadata"), dict):  # transformers fails without it
            raise InputError(f"{folder / INDEX} must have `metadata`, an object, got {shown(index.get('metadata'))}")
        return [folder / name for name in sorted(set(names))]
    raise InputError(f"{folder} must hold {WEIGHTS} or {INDEX}; {_other_weights(folder)}")


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Reads the headers of safetensors files, by tensor. Raises `InputError` for a tensor in two files.

    >>> from safetensors.torch import save_file
    >>> save_file({"weight": torch.zeros(2, 3)}, folder / WEIGHTS)
    >>> stored_tensors([folder / WEIGHTS])["weight"].shape
    (2, 3)
    """
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, entry in _header(file).items():
            if name in stored:
                raise InputError(f"a tensor must be in one file, {name} is in {stored[name].file.name} and {file.name}")
            start, end = entry["data_offsets"]
            stored[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), end - start)
    return stored


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file goes: `name` in the model, None for none. It is a part of that tensor with a `pattern`.

    The pattern is the one of transformers' that the name in the file fits.
    """

    name: str | None
    pattern: str | None


def places(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Place]:
    """Maps names in the files to places in `model`.

    Uses transformers' own loading functions: files may have or lack the prefix of the base model,
    and modules may have been renamed since the files were written.
    """
    own = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    found = {}
    for name in names:
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if renamed not in own and name in own:
            renamed, pattern = rename_source_key(name, [], [], model.base_model_prefix, own)
        found[name] = Place(renamed if renamed in own else None, pattern)
    return found


@dataclass(eq=False)
class Conversion:
    """Tensors of files that become one or more of a model: `patterns` by name in the files, None for a renamed one.

    `first` is the name in the model, or the first of several.
    """

    first: str
    converter: WeightConverter | None
    patterns: dict[str, str | None] = field(default_factory=dict)

    def convert(self, model: PreTrainedModel, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Name in `model` -> tensor; `read` gives the tensors of the files by their names."""
        if self.converter is None:
            (name,) = self.patterns
            return {self.first: read(name)}
        converter: Any = deepcopy(self.converter)
        for name, pattern in self.patterns.items():
            converter.add_tensor(self.first, name, pattern, read(name))
        found = converter.convert(self.first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def of_expert(self, number: int, num_experts: int) -> "Conversion":
        """What makes one expert alone of its own tensors, the same where the files do not keep experts apart."""
        by_pattern: dict[str | None, list[str]] = {}
        for name, pattern in self.patterns.items():
            by_pattern.setdefault(pattern, []).append(name)
        if self.converter is None or any(len(names) != num_experts for names in by_pattern.values()):
            return self
        return replace(self, patterns={names[number]: pattern for pattern, names in by_pattern.items()})


def conversions(model: PreTrainedModel, names: Iterable[str]) -> list[Conversion]:
    """What becomes of the tensors `names` of the files of `model`, without those it has no use for."""
    mapping = get_model_conversion_mapping(model)
    converters = {
        pattern: one for one in mapping if isinstance(one, WeightConverter) for pattern in one.source_patterns
    }
    found: dict[str, Conversion] = {}
    for name, place in places(model, sorted(names, key=dot_natural_key)).items():  # in the order of the experts
        if place.name is not None:
            converter = None if place.pattern is None else converters[place.pattern]
            found.setdefault(place.name, Conversion(place.name, converter)).patterns[name] = place.pattern
    return list(found.values())


def loaded_names(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str | None]:
    """Maps names in the files to names in `model`; None for unused tensors."""
    return {name: place.name for name, place in places(model, names).items()}


def stored_size(tensors: dict[str, StoredTensor], model: PreTrainedModel) -> Size:
    """Counts parameters and bytes in the files of `model`, unused tensors included."""
    buffers = {name for name, _ in model.named_buffers()}
    names = loaded_names(model, tensors)
    parameters = [tensor for name, tensor in tensors.items() if tensor.is_floating_point and names[name] not in buffers]
    num_bytes = sum(tensor.num_bytes for tensor in tensors.values())
    return Size(sum(math.prod(tensor.shape) for tensor in parameters), num_bytes)


def first_misfit(model: PreTrainedModel, tensors: dict[str, StoredTensor]) -> str | None:
    """Describes the first tensor of a wrong shape; None if all fit.

    Where the files hold one tensor an expert and the model one for all, as transformers would save it; then also the
    first that is missing.
    """
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    parts: dict[str, Tensor] = {}
    for name, place in places(model, tensors).items():
        if place.name is None:
            continue
        if place.pattern and not parts:
            saved = revert_weight_conversion(model, own)
            parts = {saved_name.removeprefix(prefix): tensor for saved_name, tensor in saved.items()}
        expected = parts.get(name.removeprefix(prefix)) if place.pattern else own[place.name]
        if expected is not None and tuple(expected.shape) != tensors[name].shape:
            return f"{name} has shape {tensors[name].shape}, the config asks for {tuple(expected.shape)}"
    if not parts:
        return None
    given = {name.removeprefix(prefix) for name in tensors}
    lost = [name for name, place in places(model, parts).items() if place.pattern and name not in given]
    return f"{min(lost)} is missing" if lost else None


def _header(file: Path) -> dict[str, Any]:
    """Header of a file already checked by `safe_open`, without its metadata."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return header


def _is_beside(folder: Path, name: Any) -> bool:
    return isinstance(name, str) and name == Path(name).name and (folder / name).is_file()


def _other_weights(folder: Path) -> str:
    """Advice on the weights found instead."""
    other = _first(folder, "*.safetensors")
    if other is not None:
        return f"got {other}: rename the variant that you want, or save it again without `variant`"
    pickled = _first(folder, "*.bin*", "*.pt", "*.pth")
    if pickled is not None:
        return f"pickled weights are never read, got {pickled}: {_CONVERT}"
    foreign = _first(folder, "*.gguf", "*.h5", "*.msgpack", "*.onnx")
    return "got no file of weights" if foreign is None else f"weights of another format are not read, got {foreign}"


def _first(folder: Path, *patterns: str) -> str | None:
    """First file name, sorted, of any of the patterns."""
    return min((file.name for pattern in patterns for file in folder.glob(pattern)), default=None)
