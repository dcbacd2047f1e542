"""Adapters by PEFT, for original and compressed models: LoRA and DSEE."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.checkpoint.files import ADAPTER as ADAPTER_FOLDER
from mlpfusion.errors import InputError, one_line
from mlpfusion.extras import ADAPTER, DSEE, LORA, Extra
from mlpfusion.kinds.key import model_key
from mlpfusion.kinds.table import kind_of
from mlpfusion.options.adapters.continued import Continued
from mlpfusion.options.adapters.dsee import Dsee
from mlpfusion.options.adapters.lora import Lora
from mlpfusion.options.training import Finetune
from mlpfusion.sites.weights import KindMap


def add_adapter(
    model: PreTrainedModel,
    adapter: Lora | Dsee,
    task_type: str,
    without: Iterable[str] = (),
    new_tokens: Sequence[int] = (),
    gradients: Mapping[str, Tensor] | None = None,
) -> Any:
    """Wraps `model` into a `PeftModel`: only the adapter trains, and what is drawn anew.

    That is the head of a classifier, and the rows of the ids `new_tokens` in the embeddings. `task_type` is PEFT's
    name of the kind of task. Modules with parameters named in `without` are left alone, whatever the targets are.
    `gradients` by path are what DSEE's `omega=gradient` reads. Changes the modules of `model`; draws from the global
    random stream. Raises `InputError` without peft, without a linear map to adapt, for a masked model (merging would
    fill the zeros), and as `draw_omega` does.
    """
    name, extra = ("lora", LORA) if isinstance(adapter, Lora) else ("dsee", DSEE)
    _check(model.config, name, extra)
    from peft import get_peft_model

    _check_targets(model, name, adapter.targets)
    targets = split_targets(adapter)
    rows = _trained_rows(model, new_tokens)
    config = _peft_config(adapter, task_type, targets, without, rows, gradients)
    try:
        with warnings.catch_warnings():
            # PEFT reads a property of transformers under its deprecated name, and finds GPT-2's layout by itself
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
            return get_peft_model(model, config)
    except InputError:
        raise
    except ValueError as error:
        if targets is None:
            cure = "of which PEFT knows none, as targets=all-linear; or leave lora out"
            raise InputError(f"`lora targets` must be given for {model.config.model_type}, {cure}") from error
        raise InputError(f"`{name} targets` must name linear maps of the model: {one_line(error)}") from error


def split_targets(adapter: Lora | Dsee) -> str | list[str] | None:
    """Returns the targets as PEFT takes them."""
    return adapter.targets if adapter.targets in (None, "all-linear") else adapter.targets.split("+")


def read_saved(folder: str) -> Any:
    """Opens the adapter in a folder. Raises `InputError` without peft, and for a folder that holds none."""
    ADAPTER.check()
    from mlpfusion.dsee.adapter.saved import read_adapter

    return read_adapter(folder)


def load_adapter(model: PreTrainedModel, continued: Continued) -> Any:
    """Wraps `model` into a `PeftModel` with the adapter of a folder, which trains again.

    Changes the modules of `model`. Raises `InputError` without peft, and if the adapter was trained on other weights.
    """
    saved = read_saved(continued.folder)
    from mlpfusion.dsee.adapter.saved import put_on

    return put_on(model, saved, is_trainable=True)


def load_beside(model: PreTrainedModel, folder: Path) -> Any:
    """Wraps `model` into a `PeftModel` with the adapter `folder/adapter`, which trains again. As `load_adapter`."""
    return load_adapter(model, Continued(str(folder / ADAPTER_FOLDER)))


def frozen_sha256(adapted: Any) -> str:
    """Returns the SHA-256 of the linear maps under an adapter."""
    from mlpfusion.dsee.adapter.saved import weights_sha256

    return weights_sha256(adapted)


def check_unmoved(adapted: Any, sha256: str) -> None:
    """Raises `InputError` if the linear maps under an adapter have another hash than `sha256`."""
    if frozen_sha256(adapted) != sha256:
        raise InputError("the weights under `adapter` must stay as they are, got other ones after the training")


def take_off(adapted: Any, config: Finetune, folder: Path | None) -> PreTrainedModel:
    """Saves the adapter as `adapter` in `folder`, if one is given; returns the plain model.

    A new adapter is merged into the weights, a continued one only if asked for.
    """
    merges = config.continued is None or config.continued.merge
    if folder is not None:
        save_beside(adapted, folder, config.seed, is_beside=not merges)
    if not merges:
        return adapted.unload()
    own = adapted.peft_config["default"]
    if own.peft_type == "DSEE":
        own.keep_zeros = False  # asked for
    return merge_adapter(adapted)


def save_beside(adapted: Any, folder: Path, seed: int, *, is_beside: bool) -> None:
    """Saves the adapter as `adapter` in `folder`; `is_beside`: the weights under it come into `folder` as they are."""
    from mlpfusion.dsee.adapter.saved import AdapterBase, save_adapter

    base = AdapterBase(frozen_sha256(adapted), seed, is_beside=is_beside)
    adds_tokens = bool(adapted.peft_config["default"].trainable_token_indices)
    save_adapter(adapted, folder / ADAPTER_FOLDER, base, adds_tokens=adds_tokens)


def merge_adapter(model: Any) -> PreTrainedModel:
    """Merges the adapter into the weights in place; returns the plain model."""
    return model.merge_and_unload()


def _check(config: PreTrainedConfig, name: str, extra: Extra) -> None:
    """Raises `InputError` without peft, and for a masked model."""
    extra.check()
    key = model_key(config)
    for entry in {} if key is None else key.sites.values():
        if kind_of(entry).no_adapter is not None:
            raise InputError(f"`{name}` must be left out for {kind_of(entry).no_adapter}")


def _peft_config(
    adapter: Lora | Dsee,
    task_type: str,
    targets: str | list[str] | None,
    without: Iterable[str],
    rows: dict[str, list[int]] | None,
    gradients: Mapping[str, Tensor] | None,
) -> Any:
    from peft import LoraConfig, TaskType

    left_alone = sorted({name.rpartition(".")[0] for name in without}) or None
    if isinstance(adapter, Lora):
        return LoraConfig(
            r=adapter.r,
            lora_alpha=adapter.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=adapter.dropout,
            target_modules=targets,
            exclude_modules=left_alone,
            trainable_token_indices=rows,
            task_type=TaskType(task_type),
        )
    from mlpfusion.dsee.adapter.config import DseeConfig

    return DseeConfig(
        r=adapter.rank,
        alpha=adapter.alpha,
        support=adapter.support,
        target_modules=targets,
        exclude_modules=left_alone,
        trainable_token_indices=rows,
        task_type=TaskType(task_type),
        gradients=None if gradients is None else dict(gradients),
    )


def _trained_rows(model: PreTrainedModel, new_tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Path of the embedding, and of a head of its own, -> the rows that train; None for none."""
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = head is not None and getattr(head, "weight", None) is getattr(words, "weight", None)
    modules = [words] if head is None or is_tied else [words, head]
    paths = [path for path, module in model.named_modules() if any(module is one for one in modules)]
    return {path: list(new_tokens) for path in paths} if new_tokens else None


def _check_targets(model: PreTrainedModel, name: str, targets: str | None) -> None:
    """Raises `InputError` for a composite linear map; PEFT adapts only the maps inside."""
    ends = [] if targets in (None, "all-linear") else targets.split("+")
    for path, module in model.named_modules():
        is_target = any(f".{path}".endswith(f".{end}") for end in ends)
        if is_target and isinstance(module, KindMap) and module.made_of:
            raise InputError(
                f"`{name} targets` must name linear maps that are not made of others, got {targets} for {path}: "
                f"name those in it, {module.made_of}, or all-linear"
            )
