"""A linear map with updates, as PEFT knows such layers."""

from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.adapter.config import DseeConfig
from mlpfusion.dsee.update import NOWHERE, Update, part_rows
from mlpfusion.errors import InputError


class DseeLayer(nn.Module, BaseTunerLayer):
    """y = W x + b + (alpha / r) (B A + S) x, with an `Update` for each adapter."""

    base_layer: nn.Module
    dsee_update: nn.ModuleDict
    adapter_layer_names = ("dsee_update",)
    other_param_names = ("scaling",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DseeConfig, path: str):
        super().__init__()
        _check_base(base_layer, path)
        self.base_layer = base_layer
        self.dsee_update = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._disable_adapters, self.merged_adapters = False, []
        self._active_adapter = adapter_name
        self.out_features, self.in_features = self.dense_weight().shape
        self.update_layer(adapter_name, config, path)

    def update_layer(self, adapter_name: str, config: DseeConfig, path: str) -> None:
        """Adds an adapter. Raises `InputError` if another is merged, and as `draw_omega` does.

        Omega is drawn from W, but not for weights without numbers, nor for an adapter from a file, which holds it.
        """
        if self.merged:
            raise InputError(
                f"the adapter must be unmerged before another is added, got {', '.join(self.merged_adapters)} merged "
                f"into {path}: call `unmerge_adapter()`"
            )
        parts = config.parts_of(path, self.get_base_layer(), self.out_features)
        omega = self._omega(parts, config, path)
        self.dsee_update[adapter_name] = Update(self.out_features, self.in_features, config.r, parts, omega)
        self.scaling[adapter_name] = config.alpha / config.r
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def _omega(self, parts: list[bool], config: DseeConfig, path: str) -> Tensor:
        """Rows and columns of the entries of all covered parts."""
        # here, because transformers imports PEFT, which imports this file by way of the hook, before it is whole
        from mlpfusion.dsee.omega import check_size, draw_omega

        if (count := config.entries_of(path)) is not None:
            return torch.full((2, count), NOWHERE)
        weight, support = self.dense_weight(), config.support
        gradient = None if config.gradients is None else config.gradients.get(path)
        found = []
        for rows in part_rows(self.out_features, parts):
            own, name = weight[rows], path if len(parts) == 1 else f"{path}[{rows.start}:{rows.stop}]"
            check_size(own, support, name)
            if weight.is_meta or config.is_drawn:
                found.append(torch.full((2, support.sparse), NOWHERE))
                continue
            omega = draw_omega(own, support, name, None if gradient is None else gradient[rows])
            found.append(omega + torch.tensor([[rows.start], [0]], device=omega.device))
        return torch.cat(found, dim=1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The map with the updates of the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.dsee_update:
                update = self.update_of(name)
                result = result + self.scaling[name] * update(self._cast_input_dtype(x, update.S.dtype))
        return result.to(dtype)

    def update_of(self, adapter_name: str) -> Update:
        """Returns what an adapter adds, before it is scaled."""
        update = self.dsee_update[adapter_name]
        assert isinstance(update, Update)
        return update

    def dense_weight(self) -> Float[Tensor, "outputs inputs"]:
        """Returns W, seen in the layout of `nn.Linear`."""
        return dense_weight(self.get_base_layer())

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Returns (alpha / r) (B A + S) in the layout of W."""
        delta = self.scaling[adapter_name] * self.update_of(adapter_name).matrix().detach()
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the updates of the active adapters, or of those named, to W."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.dsee_update:
                weight: Any = self.get_base_layer().weight
                merged = (weight.data + self.get_delta_weight(name)).to(weight.dtype)
                if safe_merge and not torch.isfinite(merged).all():
                    raise ValueError(f"NaN or Inf in the merged weights: the adapter {name} seems to be broken")
                weight.data = merged
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Takes the merged updates out of W again."""
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight: Any = self.get_base_layer().weight
            weight.data = (weight.data - self.get_delta_weight(name)).to(weight.dtype)


def dense_weight(linear: Any) -> Float[Tensor, "outputs inputs"]:
    """Returns the weight of a plain map, seen in the layout of `nn.Linear`.

    >>> dense_weight(Conv1D(3, 2)).shape
    torch.Size([3, 2])
    """
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight


def _check_base(module: nn.Module, path: str) -> None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear | Conv1D) and isinstance(weight, Tensor) and weight.is_floating_point():
        return
    what = type(module).__name__ if not isinstance(module, nn.Linear | Conv1D) else "quantised weights"
    raise InputError(f"`dsee targets` must name maps of type Linear or Conv1D, not quantised, got {what} for {path}")
