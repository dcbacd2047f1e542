"""Entries of a config that a compressed model has of its own: the key `mlp_fusion`, and the widths."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedConfig, PreTrainedModel

from mlpfusion.kinds.key import FusionKey, key_to_dict
from mlpfusion.kinds.kind import KEY
from mlpfusion.sites.parts import parts_of
from mlpfusion.sites.sites import base_model
from mlpfusion.sites.table import Architecture
from mlpfusion.sites.width_keys import set_width


def set_key(model: PreTrainedModel, key: FusionKey) -> None:
    """Writes the key into the config, which `save_pretrained` saves. Changes the model's config."""
    set_entries(model, {}, key)


def set_entries(model: PreTrainedModel, widths: Mapping[str, int], key: FusionKey | None) -> None:
    """Writes widths and the key, or no key, into the config, and that of the base model. Changes the model's config."""
    part, base = base_part(model), base_model(model).config
    write_entries(model.config, part, widths, key)
    if part is None and base is not model.config:
        write_entries(base, None, widths, key)


def base_part(model: PreTrainedModel) -> str | None:
    """Path in the config of that of the base model, where it is another: ColPali's is a part with its own."""
    base = base_model(model).config
    return next((path for path, part in parts_of(model.config) if part is base), None)


def write_entries(
    config: PreTrainedConfig, base_part: str | None, widths: Mapping[str, int], key: FusionKey | None
) -> None:
    """Sets the widths, and sets or removes the key, in the config of the base model too. Changes the config."""
    for name, width in widths.items():
        set_width(config, name, width)
    _write_key(config, key)
    if base_part is not None:
        _write_key(dict(parts_of(config))[base_part], None if key is None else _with_keys_from(key, f"{base_part}."))


def _write_key(config: PreTrainedConfig, key: FusionKey | None) -> None:
    if key is not None:
        setattr(config, KEY, key_to_dict(key))
    elif hasattr(config, KEY):
        delattr(config, KEY)


def _with_keys_from(key: FusionKey, prefix: str) -> FusionKey:
    stacks = key.architecture.stacks
    named = (replace(stack, width_key=stack.width_key and stack.width_key.removeprefix(prefix)) for stack in stacks)
    return replace(key, architecture=Architecture(tuple(named)))
