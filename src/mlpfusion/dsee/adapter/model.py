"""DSEE as a tuner of PEFT: where the layers go."""

from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from mlpfusion.dsee.adapter.layer import DseeLayer
from mlpfusion.errors import InputError

# What query and value are called in the models of transformers; the first that a model has are taken.
_QUERY_AND_VALUE = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("query_proj", "value_proj"),
    ("q_lin", "v_lin"),
    ("q", "v"),
)


class DseeModel(BaseTuner):
    """A model with `DseeLayer`s in it."""

    prefix = "dsee_"
    tuner_layer_cls = DseeLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012  # unused, but PEFT's class has it

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        if peft_config.target_modules is None:
            peft_config.target_modules = query_and_value(self.model)
        return peft_config

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, DseeLayer):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        layer = DseeLayer(target, adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        configs: dict[str, Any] = self.peft_config
        kept = [name for name in self.active_adapters if configs[name].keep_zeros]
        if kept:
            raise InputError(
                f"the adapter {kept[0]} must stay beside the weights: merged, it fills their zeros; "
                f'`model.peft_config["{kept[0]}"].keep_zeros = False` allows that'
            )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own also hands on `child.weight`, which the head of RoBERTa has not when it is put back after a merge
        setattr(parent, child_name, new_module)


def query_and_value(model: nn.Module) -> set[str]:
    """Returns the names of the maps to query and value. Raises `InputError` for a model without known ones.

    >>> query_and_value(nn.ModuleDict({"q_proj": nn.Linear(2, 2), "v_proj": nn.Linear(2, 2)})) == {"q_proj", "v_proj"}
    True
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    maps = {path.removesuffix(".base_layer"): module for path, module in found.items()}  # under another adapter
    last = {path.rpartition(".")[2] for path in maps}
    for names in _QUERY_AND_VALUE:
        if last.issuperset(names):
            return set(names)
    if any(path.endswith(".attn.c_attn") and isinstance(module, Conv1D) for path, module in maps.items()):
        return {"attn.c_attn"}
    raise InputError(
        f"`dsee targets` must be given for {type(model).__name__}, which has no maps to query and value of known names"
    )
