"""Reads the key `mlp_fusion` of a model's config, and checks that it fits the rest of the config."""

from dataclasses import replace

from transformers import PreTrainedConfig

from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.key import KEY, FusionKey, NarrowSite, key_from_dict
from mlpfusion.sites.sites import layer_number
from mlpfusion.sites.table import Architecture, Stack, check_known_row
from mlpfusion.sites.width_keys import is_width_key


def model_key(config: PreTrainedConfig) -> FusionKey | None:
    """The key of a config, None without one.

    Raises `InputError` if it is malformed, its row is not the table's for a known model type, or a `width_key` names
    anything but the entry of the config that holds the original width. In keys of version 1, which `inspect` wrote with
    guesses, such a `width_key` counts as null.
    """
    data = getattr(config, KEY, None)
    if data is None:
        return None
    key = key_from_dict(data)
    try:
        check_known_row(config.model_type, key.architecture)
    except InputError as error:
        raise InputError(f"`{KEY}` does not fit the config: {error}") from error
    wrong = [stack for stack in key.architecture.stacks if not _fits(config, key, stack)]
    if wrong and data["version"] > 1:
        raise InputError(
            f"`{KEY}` must name in `width_key` the entry of the config that holds the original width, or null, "
            f"got {shown(wrong[0].width_key)}"
        )
    stacks = (replace(stack, width_key=None) if stack in wrong else stack for stack in key.architecture.stacks)
    return replace(key, architecture=Architecture(tuple(stacks)))


def _fits(config: PreTrainedConfig, key: FusionKey, stack: Stack) -> bool:
    """Whether the `width_key` of a stack is null or holds the original width of its layers in the key."""
    layers = [entry for path, entry in key.sites.items() if layer_number(stack.layer, path) is not None]
    widths = {entry.original_size for entry in layers if isinstance(entry, NarrowSite)}
    return stack.width_key is None or all(is_width_key(config, stack.width_key, width) for width in widths)
