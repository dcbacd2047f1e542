"""The key `mlp_fusion` of a model's config: all that the loader needs to rebuild a compressed model."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from transformers import PreTrainedConfig

from mlpfusion.errors import InputError, shown
from mlpfusion.kinds.kind import KEY, MAX_NUMBER, InstalledSite, entry_place
from mlpfusion.kinds.table import KIND_NAMES, kind_of
from mlpfusion.sites.table import Architecture, Stack, architecture_from_dict, architecture_to_dict, check_known_row
from mlpfusion.sites.width_keys import is_width_key

VERSION = 2  # 1 had no checksum; both are read
_MAX_SITES = 100_000


@dataclass(frozen=True)
class FusionKey:
    """What was compressed and from what. `sites` maps the holder of an MLP, or of all experts, to what is there now."""

    architecture: Architecture
    sites: dict[str, InstalledSite]
    method: str
    seed: int
    source_sha256: str


def key_to_dict(key: FusionKey) -> dict[str, Any]:
    """The key as JSON data, with the version of this form and a checksum."""
    data = {
        "version": VERSION,
        "method": key.method,
        "seed": key.seed,
        "source_sha256": key.source_sha256,
        "architecture": architecture_to_dict(key.architecture),
        "sites": {path: entry_to_dict(entry) for path, entry in key.sites.items()},
    }
    return data | {"checksum": checksum(data)}


def checksum(data: dict[str, Any]) -> str:
    """SHA-256 of a key as JSON data, but for its entry `checksum`: no edit by accident goes unseen."""
    rest = {name: value for name, value in data.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def key_from_dict(data: Any) -> FusionKey:
    """The key from JSON data. Raises `InputError` for a newer version and anything missing, unknown or malformed."""
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise InputError(
            f"`{KEY}.version` must be between 1 and {VERSION}, got {shown(version)}; upgrade mlpfusion to load it"
        )
    names = ["version", *(field.name for field in fields(FusionKey))]
    _check_keys(KEY, data, names if version == 1 else [*names, "checksum"])
    if not isinstance(data["source_sha256"], str) or not re.fullmatch("[0-9a-f]{64}", data["source_sha256"]):
        raise InputError(f"`{KEY}.source_sha256` must be 64 hexadecimal digits, got {shown(data['source_sha256'])}")
    if not isinstance(data["method"], str) or type(data["seed"]) is not int:
        raise InputError(f"`{KEY}` must hold `method` as text and `seed` as a whole number")
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,63}", data["method"]) or abs(data["seed"]) > MAX_NUMBER:
        raise InputError(
            f"`{KEY}` must hold the name of a method and a seed below 2^53, "
            f"got {shown(data['method'])} and {shown(data['seed'])}"
        )
    if not isinstance(data["sites"], dict) or not data["sites"]:
        raise InputError(f"`{KEY}.sites` must name at least one layer, got {shown(data['sites'])}")
    if len(data["sites"]) > _MAX_SITES:
        raise InputError(f"`{KEY}.sites` must name between 1 and {_MAX_SITES:,} layers, got {len(data['sites']):,}")
    architecture = architecture_from_dict(data["architecture"])
    _check_paths(architecture, data["sites"])
    sites = {path: entry_from_dict(path, site) for path, site in data["sites"].items()}
    if version > 1 and data["checksum"] != checksum(data):
        raise InputError(f"`{KEY}` must be as it was written, its checksum says that it was edited")
    return FusionKey(architecture, sites, data["method"], data["seed"], data["source_sha256"])


def _check_paths(architecture: Architecture, sites: dict[Any, Any]) -> None:
    """Raises `InputError` if a path is not that of a layer, or of a mixture, of a stack of the row."""
    templates = list(dict.fromkeys(stack.holder for stack in architecture.stacks))
    for path in sites:
        if not isinstance(path, str) or not any(stack.holds(path) for stack in architecture.stacks):
            raise InputError(f"`{KEY}.sites` must name layers {' or '.join(templates)}, got {shown(path)}")


def entry_to_dict(entry: InstalledSite) -> dict[str, Any]:
    """An entry of the key as JSON data."""
    return {"kind": kind_of(entry).name, **asdict(entry)}


def entry_from_dict(path: str, data: Any) -> InstalledSite:
    """The entry of the block at `path` from JSON data. Raises `InputError` for what is missing or malformed."""
    where = entry_place(path)
    name = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in KIND_NAMES:
        raise InputError(f"`{where}.kind` must be one of {', '.join(KIND_NAMES)}, got {shown(name)}")
    kind = KIND_NAMES[name]
    _check_keys(where, data, ["kind", *(item.name for item in fields(kind.entry))])
    return kind.read_entry(path, data)


def _check_keys(where: str, data: Any, known: list[str]) -> None:
    if not isinstance(data, dict) or set(data) != set(known):
        given = list(data) if isinstance(data, dict) else data
        raise InputError(f"`{where}` must have exactly the keys {', '.join(known)}, got {shown(given)}")


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
    """Whether the `width_key` of a stack is null or holds the original width of its layers in the key.

    Where the layers are also those of another stack, dense ones and ones with a shared expert say, of some of them.
    """
    layers = [entry for path, entry in key.sites.items() if stack.holds(path)]
    widths = {kind_of(entry).original_width(entry) for entry in layers} - {None}
    alone = sum(other.holder == stack.holder for other in key.architecture.stacks) == 1
    fit = [is_width_key(config, stack.width_key, width) for width in widths if width] if stack.width_key else []
    return not fit or (all(fit) if alone else any(fit))
