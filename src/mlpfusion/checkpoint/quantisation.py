"""Quantised weights, recognised in a config or in a model, and refused."""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from mlpfusion.checks import check_finite
from mlpfusion.errors import InputError
from mlpfusion.sites.sites import check_in_memory


def quantisation(config: PreTrainedConfig) -> str | None:
    """Name of the quantisation method; None for plain weights. Needs no quantiser installed.

    >>> config = PreTrainedConfig(quantization_config={"quant_method": "gptq"})
    >>> quantisation(config)
    'gptq'
    """
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))]
    configs = [part.quantization_config for part in parts if getattr(part, "quantization_config", None) is not None]
    return _method(configs[0]) if configs else None


def check_not_quantised(config: PreTrainedConfig, where: str = "") -> None:
    """Raises `InputError` for the config of a quantised model.

    `where` is its place, for the message.
    """
    method = quantisation(config)
    if method is not None:
        raise InputError(
            f"`model` must have plain weights, got weights{where} quantised by {method}: start from the model that was "
            "quantised, and quantise what comes out"
        )


def check_parameters(model: nn.Module) -> None:
    """Raises `InputError` unless every parameter is in memory, floating point and finite."""
    check_in_memory(model)
    for name, parameter in model.named_parameters():
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            raise InputError(
                f"`model` must have plain weights, got {type(parameter).__name__} of {parameter.dtype} for {name}: "
                "start from the model before it was quantised or sharded"
            )
        check_finite(parameter, "the weights", f" in {name}")


def _method(data: Any) -> str:
    """Name in `quantization_config`, a dict from a file or an object of transformers."""
    entry = data.to_dict() if isinstance(data, QuantizationConfigMixin) else data if isinstance(data, dict) else {}
    for bits in (4, 8):
        if entry.get(f"load_in_{bits}bit") is True:
            return f"bitsandbytes in {bits} bit"
    method = entry.get("quant_method")
    name = method.value if isinstance(method, QuantizationMethod) else method
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,40}", name) else "an unknown method"
