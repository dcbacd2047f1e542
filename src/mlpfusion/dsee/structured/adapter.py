"""An adapter of DSEE off its model: read from a folder or taken off, checked, cut where the model loses heads."""

import copy
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.checkpoint.files import read_json
from mlpfusion.checkpoint.stage import ADAPTER
from mlpfusion.checks import check_finite
from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.update import Update, part_rows
from mlpfusion.errors import InputError, one_line, shown
from mlpfusion.heads.sites import Cut, HeadSite
from mlpfusion.sites.sites import base_model
from mlpfusion.sites.weights import linear_shape

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FIELDS = ("A", "B", "S", "omega")


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that no model holds. `places` maps a linear map of the model to how its names start.

    `folder` is where it was read, None for one that was on a model in memory.
    """

    folder: Path | None
    config: DseeConfig
    tensors: dict[str, Tensor]
    places: dict[str, str]

    def update(self, base: PreTrainedModel, path: str) -> Float[Tensor, "outputs inputs"] | None:
        """Returns (alpha / r) (B A + S) of the map at `path` from the base model, None where it has none."""
        if path not in self.places:
            return None
        module = base.get_submodule(path)
        outputs, inputs = linear_shape(module)
        a, b, s, omega = (self.tensors[f"{self.places[path]}.{name}"] for name in _FIELDS)
        with torch.random.fork_rng(devices=[]):  # what it draws is not used
            update = Update(outputs, inputs, self.config.r, self.config.parts_of(path, module, outputs), omega)
        for parameter, values in ((update.A, a), (update.B, b), (update.S, s)):
            parameter.data = values
        return self.config.alpha / self.config.r * update.matrix().detach()

    def cut(
        self, base: PreTrainedModel, sites: Sequence[HeadSite], kept: Mapping[str, Sequence[int]]
    ) -> "StoredAdapter":
        """Returns the adapter of the model with the heads `kept`: rows of B, columns of A, entries of S.

        `base` still has all heads. This adapter stays as it is.
        """
        tensors, config = dict(self.tensors), copy.copy(self.config)
        config.entries = dict(config.entries or {})
        for site in sites:
            for path, cut in site.cuts(kept[site.path]).items():
                if path in self.places:
                    module, place = base.get_submodule(path), self.places[path]
                    outputs, _ = linear_shape(module)
                    parts = part_rows(outputs, config.parts_of(path, module, outputs))
                    found = _cut(self.tensors, place, parts, cut)
                    tensors |= {f"{place}.{name}": values.contiguous() for name, values in found.items()}
                    config.entries[path] = len(found["S"])
        return replace(self, config=config, tensors=tensors)

    def write(self, base_name: str, folder: Path) -> None:
        """Writes config and weights into the new `folder`, as PEFT does; `base_name` names the model under it."""
        folder.mkdir()
        config = copy.copy(self.config)
        config.base_model_name_or_path = base_name
        config.save_pretrained(str(folder))
        save_file(self.tensors, folder / _WEIGHTS, {"format": "pt"})

    @property
    def num_entries(self) -> int:
        """Numbers of A, B and S: multiply-adds for every token."""
        names = (f"{place}.{name}" for place in self.places.values() for name in ("A", "B", "S"))
        return sum(self.tensors[name].numel() for name in names)


def read_adapter(folder: Path, model: PreTrainedModel) -> StoredAdapter:
    """Returns the adapter in `folder`, which must be one of DSEE for `model`; this may be on the meta device.

    Raises `InputError` for anything else, and for NaN or Inf.
    """
    if not (folder / _CONFIG).is_file():
        is_merged = (folder / ADAPTER / _CONFIG).is_file()
        cure = f", where it is merged: give {ADAPTER} in it" if is_merged else ""
        raise InputError(f"`adapter` must be a folder with {_CONFIG}, got {shown(str(folder))}{cure}")
    kind = read_json(folder / _CONFIG).get("peft_type")
    if kind != "DSEE":
        raise InputError(f"`adapter` must be one of DSEE, got {shown(kind)}")
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"`adapter` must hold {_CONFIG} and {_WEIGHTS} of PEFT: {one_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_finite(tensor, "`adapter`", f" in {name}")
    base = base_model(model)
    adapter = StoredAdapter(folder, config, tensors, _places(tensors, base))
    for path in adapter.places:
        _check_shapes(adapter, base, path)
    return adapter


def lift(adapted: Any) -> tuple[PreTrainedModel, StoredAdapter]:
    """Takes the adapter of DSEE off a `PeftModel`, unmerged: the plain model, and the adapter."""
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    config = copy.copy(adapted.peft_config["default"])
    model: PreTrainedModel = adapted.unload()
    return model, StoredAdapter(None, config, tensors, _places(tensors, base_model(model)))


def lay(model: PreTrainedModel, adapter: StoredAdapter) -> Any:
    """Returns `model` under an adapter, a `PeftModel` that trains. Changes the modules of `model`."""
    config = copy.copy(adapter.config)
    config.is_drawn = True  # the positions come with the values
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # what it draws is overwritten
        warnings.simplefilter("ignore")  # of PEFT: the model had an adapter before
        adapted = get_peft_model(model, config)
        set_peft_model_state_dict(adapted, adapter.tensors)
    return adapted


def _places(tensors: Iterable[str], base: PreTrainedModel) -> dict[str, str]:
    """The path of every map with an update -> how the names of its tensors start."""
    maps = {path for path, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    names = [name.removesuffix(".A") for name in tensors if name.endswith(".dsee_update.A")]
    return {_map_of(name, maps): name for name in names}


def _map_of(name: str, maps: Container[str]) -> str:
    """The one of `maps`, paths from the base model, whose update is called `name`."""
    parts = name.removesuffix(".dsee_update").split(".")
    found = [path for start in range(len(parts)) if (path := ".".join(parts[start:])) in maps]
    if not found:
        raise InputError(f"`adapter` must be for linear maps of the model, got {shown(name)}")
    return found[0]


def _check_shapes(adapter: StoredAdapter, base: PreTrainedModel, path: str) -> None:
    place, (outputs, inputs) = adapter.places[path], linear_shape(base.get_submodule(path))
    missing = [name for name in _FIELDS if f"{place}.{name}" not in adapter.tensors]
    if missing:
        raise InputError(f"`adapter` must hold {', '.join(_FIELDS)} for every map, {missing[0]} of {path} is missing")
    parts = adapter.config.parts_of(path, base.get_submodule(path), outputs)
    a, b, s, omega = (adapter.tensors[f"{place}.{name}"] for name in _FIELDS)
    rank = adapter.config.r
    expected = [(sum(parts), rank, inputs), (sum(parts), outputs // len(parts), rank), (2, len(s))]
    found = [tuple(tensor.shape) for tensor in (a, b, omega)]
    if found != expected or s.ndim != 1:
        raise InputError(
            f"`adapter` must fit the model, whose {path} is {outputs} x {inputs}, so A, B and omega must have shapes "
            f"{expected}, got {found}"
        )
    limits = torch.tensor([[outputs], [inputs]])
    if omega.is_floating_point() or bool(((omega < 0) | (omega >= limits)).any()):
        raise InputError(f"`adapter` must have positions inside the {outputs} x {inputs} entries of {path}")


def _cut(tensors: Mapping[str, Tensor], place: str, parts: Sequence[slice], cut: Cut) -> dict[str, Tensor]:
    """A, B, S and omega of a map of which `cut` stays."""
    a, b, s, omega = (tensors[f"{place}.{name}"] for name in _FIELDS)
    if cut.rows is not None:
        inside = [[row - part.start for row in cut.rows if part.start <= row < part.stop] for part in parts]
        b = torch.stack([rows[own] for rows, own in zip(b, inside, strict=True)])
        s, omega = _entries(s, omega, 0, cut.rows)
    if cut.columns is not None:
        a = a[:, :, cut.columns]
        s, omega = _entries(s, omega, 1, cut.columns)
    return {"A": a, "B": b, "S": s, "omega": omega}


def _entries(values: Tensor, omega: Tensor, axis: int, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The entries in rows (`axis` 0) or columns that stay, at their new places."""
    places = torch.full((max([*kept, *omega[axis].tolist()]) + 1,), -1)
    places[torch.tensor(kept)] = torch.arange(len(kept))
    moved = omega.clone()
    moved[axis] = places[omega[axis]]
    stays = moved[axis] >= 0
    return values[stays], moved[:, stays]
