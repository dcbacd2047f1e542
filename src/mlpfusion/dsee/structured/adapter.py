"""An adapter of DSEE or LoRA off its model, cut where the model loses heads."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.update import part_rows
from mlpfusion.errors import InputError
from mlpfusion.heads.sites import Cut, HeadSite
from mlpfusion.sites.sites import base_model, base_prefix
from mlpfusion.sites.weights import linear_shape


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter that no model holds: its config, and its tensors by their names in a file of PEFT."""

    config: Any
    tensors: dict[str, Tensor]

    def cut(
        self, model: PreTrainedModel, sites: Sequence[HeadSite], kept: Mapping[str, Sequence[int]]
    ) -> "StoredAdapter":
        """Returns the adapter of the model with the heads `kept`: rows of B, columns of A, entries of S.

        `model` still has all heads. This adapter stays as it is.
        """
        base, prefix, cut = base_model(model), base_prefix(model), replace(self, tensors=dict(self.tensors))
        for site in sites:
            for path, part in site.cuts(kept[site.path]).items():
                place = f"base_model.model.{prefix}{path}"
                if f"{place}.lora_A.weight" in self.tensors:
                    cut = cut.with_tensors(f"{place}.lora_", self._lora(f"{place}.lora_", part))
                elif f"{place}.dsee_update.A" in self.tensors:
                    update = self._update(f"{place}.dsee_update.", base.get_submodule(path), path, part)
                    cut = cut.with_tensors(f"{place}.dsee_update.", update).with_entries(path, len(update["S"]))
        return cut

    def with_tensors(self, start: str, tensors: Mapping[str, Tensor]) -> "StoredAdapter":
        """Returns the adapter with other tensors at the names that begin with `start`."""
        named = {f"{start}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        return replace(self, tensors=self.tensors | named)

    def with_entries(self, path: str, count: int) -> "StoredAdapter":
        """Returns the adapter of DSEE whose S has `count` values at a map."""
        config = copy.copy(self.config)
        config.entries = dict(config.entries or {}) | {path: count}
        return replace(self, config=config)

    def _lora(self, start: str, cut: Cut) -> dict[str, Tensor]:
        a, b = (self.tensors[f"{start}{name}.weight"] for name in ("A", "B"))
        return {
            "A.weight": a if cut.columns is None else a[:, cut.columns],
            "B.weight": b if cut.rows is None else b[cut.rows],
        }

    def _update(self, start: str, module: nn.Module, path: str, cut: Cut) -> dict[str, Tensor]:
        a, b, s, omega = (self.tensors[f"{start}{name}"] for name in ("A", "B", "S", "omega"))
        if cut.rows is not None:
            outputs, _ = linear_shape(module)
            parts = part_rows(outputs, self.config.parts_of(path, module, outputs))
            inside = [[row - part.start for row in cut.rows if part.start <= row < part.stop] for part in parts]
            b = torch.stack([rows[own] for rows, own in zip(b, inside, strict=True)])
            s, omega = _entries(s, omega, 0, cut.rows)
        if cut.columns is not None:
            a = a[:, :, cut.columns]
            s, omega = _entries(s, omega, 1, cut.columns)
        return {"A": a, "B": b, "S": s, "omega": omega}


def lift(adapted: Any) -> tuple[PreTrainedModel, StoredAdapter]:
    """Takes the adapter off a `PeftModel`, unmerged: the plain model, and the adapter."""
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    config = copy.copy(adapted.peft_config["default"])
    return adapted.unload(), StoredAdapter(config, tensors)


def lay(model: PreTrainedModel, adapter: StoredAdapter) -> Any:
    """Returns `model` under an adapter, a `PeftModel` that trains. Changes the modules of `model`."""
    config = copy.copy(adapter.config)
    if config.peft_type == "DSEE":
        config.is_drawn = True  # the positions come with the values
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # what it draws is overwritten
        warnings.simplefilter("ignore")  # of PEFT: the model had an adapter before
        adapted = get_peft_model(model, config)
        set_peft_model_state_dict(adapted, adapter.tensors)
    return adapted


def maps_under(adapted: Any) -> dict[str, Any]:
    """Returns the linear maps under an adapter, as PEFT's layers, by the path from the base model."""
    return {
        path: layer
        for path, layer in base_model(adapted.get_base_model()).named_modules()
        if isinstance(layer, BaseTunerLayer) and isinstance(layer.get_base_layer(), nn.Linear | Conv1D)
    }


def check_cuttable(config: Any) -> None:
    """Raises `InputError` for a LoRA that trains biases: rows of them would have to go too."""
    if isinstance(config, LoraConfig) and (config.bias != "none" or config.lora_bias):
        got = f"bias={config.bias}, lora_bias={config.lora_bias}"
        raise InputError(f"`adapter` must be a LoRA without biases for heads to go, got one with {got}")


def _entries(values: Tensor, omega: Tensor, axis: int, kept: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The entries in rows (`axis` 0) or columns that stay, at their new places."""
    places = torch.full((max([*kept, *omega[axis].tolist()]) + 1,), -1)
    places[torch.tensor(kept)] = torch.arange(len(kept))
    moved = omega.clone()
    moved[axis] = places[omega[axis]]
    stays = moved[axis] >= 0
    return values[stays], moved[:, stays]
