"""LoRA by PEFT, for original and compressed models."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.errors import InputError, one_line
from mlpfusion.extras import LORA
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.table import kind_of
from mlpfusion.options.training import Lora
from mlpfusion.sites.weights import KindMap


def add_lora(
    model: PreTrainedModel, lora: Lora, adapter: str, without: Iterable[str] = (), new_tokens: Sequence[int] = ()
) -> Any:
    """Wraps `model` into a `PeftModel`: only LoRA factors train, and what is drawn anew.

    That is the head of a classifier, and the rows of the ids `new_tokens` in the embeddings. `adapter`
    is PEFT's name of the kind of task. Modules with parameters named in `without` get no factors,
    whatever the targets are. Changes the modules of `model`; draws from the global random
    stream. Raises `InputError` without peft, without a linear map to adapt, and for a masked model
    (merging would fill the zeros).
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
        exclude_modules=sorted({name.rpartition(".")[0] for name in without}) or None,
        trainable_token_indices=_trained_rows(model, new_tokens),
        task_type=TaskType(adapter),
    )
    try:
        with warnings.catch_warnings():
            # PEFT reads a property of transformers under its deprecated name, and finds GPT-2's layout by itself
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        if targets is None:
            cure = "of which PEFT knows none, as targets=all-linear; or leave lora out"
            raise InputError(f"`lora targets` must be given for {model.config.model_type}, {cure}") from error
        raise InputError(f"`lora targets` must name linear maps of the model: {one_line(error)}") from error


def _trained_rows(model: PreTrainedModel, new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Path of the embedding, and of a head of its own, -> the rows that train; None for none."""
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is not None and getattr(head, "weight", None) is getattr(words, "weight", None)
    modules = [words] if head is None or is_tied else [words, head]
    paths = [path for path, module in model.named_modules() if any(module is one for one in modules)]
    return {path: list(new_tokens) for path in paths} if new_tokens else None


def _check(config: PreTrainedConfig) -> None:
    LORA.check()
    key = model_key(config)
    for entry in {} if key is None else key.sites.values():
        if kind_of(entry).no_adapter is not None:
            raise InputError(f"`lora` must be left out for {kind_of(entry).no_adapter}")


def _check_targets(model: PreTrainedModel, targets: str | None) -> None:
    """Raises `InputError` for a composite linear map; PEFT adapts only the maps inside."""
    names = [] if targets in (None, "all-linear") else targets.split("+")
    for path, module in model.named_modules():
        is_target = any(f".{path}".endswith(f".{name}") for name in names)
        if is_target and isinstance(module, KindMap) and module.made_of:
            raise InputError(
                f"`lora targets` must name linear maps that are not made of others, got {targets} for {path}: "
                f"name those in it, {module.made_of}, or all-linear"
            )


def merge_lora(model: Any) -> PreTrainedModel:
    """Merges the adapter into the weights in place; returns the plain model."""
    return model.merge_and_unload()
