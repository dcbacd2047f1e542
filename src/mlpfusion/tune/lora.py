"""LoRA by PEFT, on a model before or after it was compressed."""

import warnings
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.errors import InputError, one_line
from mlpfusion.extras import LORA
from mlpfusion.kinds.key import MaskedSite
from mlpfusion.kinds.model_key import model_key
from mlpfusion.modules.low_rank import LowRankLinear
from mlpfusion.modules.routed import RoutedLinear
from mlpfusion.options.training import Lora


def add_lora(model: PreTrainedModel, lora: Lora) -> Any:
    """The `PeftModel` around `model`: only the factors and the head are trained. Changes the modules of `model`.

    Draws from the global random stream. Raises `InputError` if peft is not installed or finds no map to adapt, and for
    a masked model.
    """
    _check(model.config)
    from peft import LoraConfig, TaskType, get_peft_model

    _check_targets(model, lora.targets)
    targets = lora.targets if lora.targets in (None, "all-linear") else lora.targets.split("+")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type=TaskType.SEQ_CLS,
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers for what is going to have another name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        if targets is None:
            cure = "of which PEFT knows none, as targets=all-linear; or leave lora out"
            raise InputError(f"`lora targets` must be given for {model.config.model_type}, {cure}") from error
        raise InputError(f"`lora targets` must name linear maps of the model: {one_line(error)}") from error


def _check(config: PreTrainedConfig) -> None:
    LORA.check()
    key = model_key(config)
    if key is not None and any(isinstance(site, MaskedSite) for site in key.sites.values()):
        raise InputError("`lora` must be left out for a masked model: what is merged into it fills its zeros")


def _check_targets(model: PreTrainedModel, targets: str | None) -> None:
    """Raises `InputError` for the name of a map that is made of others: PEFT adapts these."""
    wanted = [] if targets in (None, "all-linear") else targets.split("+")
    for path, module in model.named_modules():
        if isinstance(module, LowRankLinear | RoutedLinear) and any(f".{path}".endswith(f".{one}") for one in wanted):
            inner = "left+right" if isinstance(module, LowRankLinear) else "linear"
            raise InputError(
                f"`lora targets` must name linear maps that are not made of others, got {targets} for {path}: "
                f"name those in it, {inner}, or all-linear"
            )


def merge_lora(model: Any) -> PreTrainedModel:
    """The model with its adapter multiplied into the weights: the modules it had before. Changes the model."""
    return model.merge_and_unload()
