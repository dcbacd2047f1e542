"""The key `mlp_fusion` of a model's config: all that the loader needs to rebuild a compressed model."""

import hashlib
import json
import re
from dataclasses import Field, asdict, dataclass, fields
from typing import Any

from mlpfusion.errors import InputError, shown
from mlpfusion.sites.sites import layer_number
from mlpfusion.sites.table import Architecture, architecture_from_dict, architecture_to_dict

KEY = "mlp_fusion"
VERSION = 2  # 1 had no checksum; both are read
_MAX_SITES, _MAX_NUMBER = 100_000, 2**53


@dataclass(frozen=True)
class NarrowSite:
    """A narrower MLP: its width now and before, the scales in its activation (`install.narrow`), its parameters now."""

    intermediate_size: int
    original_size: int
    scale: str
    num_parameters: int


@dataclass(frozen=True)
class LowRankSite:
    """An MLP of factors: the rank of its matrices, its parameters now (all factors and biases).

    The rank is one number, or where the matrices differ one for each by its name (`up`, `gate`, `down`).
    """

    rank: int | dict[str, int]
    num_parameters: int


@dataclass(frozen=True)
class MaskedSite:
    """An MLP with zeros: how many its matrices have at least, and its parameters, zeros counted."""

    num_zeros: int
    num_parameters: int


@dataclass(frozen=True)
class RoutedSite:
    """An MLP of experts: how many, how many of them compute for a token, and its parameters, those of all experts."""

    num_experts: int
    num_selected: int
    num_parameters: int


InstalledSite = NarrowSite | LowRankSite | MaskedSite | RoutedSite
SITE_KINDS: dict[str, type[InstalledSite]] = {
    "narrow": NarrowSite,
    "low-rank": LowRankSite,
    "masked": MaskedSite,
    "routed": RoutedSite,
}


@dataclass(frozen=True)
class FusionKey:
    """What was compressed and from what. `sites` maps the path of a layer from the base model to its MLP."""

    architecture: Architecture
    sites: dict[str, InstalledSite]
    method: str
    seed: int
    source_sha256: str


def site_kind(site: InstalledSite) -> str:
    """The name of the kind of outcome at a site: `narrow`, `low-rank`, `masked` or `routed`."""
    return next(name for name, kind in SITE_KINDS.items() if type(site) is kind)


def key_to_dict(key: FusionKey) -> dict[str, Any]:
    """The key as JSON data, with the version of this form and a checksum."""
    data = {
        "version": VERSION,
        "method": key.method,
        "seed": key.seed,
        "source_sha256": key.source_sha256,
        "architecture": architecture_to_dict(key.architecture),
        "sites": {path: {"kind": site_kind(site), **asdict(site)} for path, site in key.sites.items()},
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
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,63}", data["method"]) or abs(data["seed"]) > _MAX_NUMBER:
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
    sites = {path: _site_from_dict(path, site) for path, site in data["sites"].items()}
    if version > 1 and data["checksum"] != checksum(data):
        raise InputError(f"`{KEY}` must be as it was written, its checksum says that it was edited")
    return FusionKey(architecture, sites, data["method"], data["seed"], data["source_sha256"])


def _check_paths(architecture: Architecture, sites: dict[Any, Any]) -> None:
    """Raises `InputError` if a path is not that of a layer of a stack of the row."""
    templates = list(dict.fromkeys(stack.layer for stack in architecture.stacks))
    for path in sites:
        if not isinstance(path, str) or all(layer_number(template, path) is None for template in templates):
            raise InputError(f"`{KEY}.sites` must name layers {' or '.join(templates)}, got {shown(path)}")


def _site_from_dict(path: str, data: Any) -> InstalledSite:
    where = f"{KEY}.sites[{path}]"
    name = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in SITE_KINDS:
        raise InputError(f"`{where}.kind` must be one of {', '.join(SITE_KINDS)}, got {shown(name)}")
    items = fields(SITE_KINDS[name])
    _check_keys(where, data, ["kind", *(item.name for item in items)])
    for item in items:
        _check_value(where, item, data[item.name])
    site = SITE_KINDS[name](**{item.name: data[item.name] for item in items})
    if isinstance(site, NarrowSite) and site.intermediate_size > site.original_size:
        raise InputError(
            f"`intermediate_size` of {path} must be at most {site.original_size}, got {site.intermediate_size}"
        )
    return site


def _check_value(where: str, item: Field, value: Any) -> None:
    if item.type is str and type(value) is not str:
        raise InputError(f"`{where}.{item.name}` must be text, got {shown(value)}")
    if item.name == "rank" and isinstance(value, dict) and value:
        if not set(value) <= {"up", "gate", "down"}:
            raise InputError(f"`{where}.rank` must have the names of matrices, got {shown(value)}")
        for name, rank in value.items():
            _check_number(f"{where}.rank.{name}", rank, 1)
    elif item.type is not str:
        _check_number(f"{where}.{item.name}", value, 0 if item.name == "num_zeros" else 1)


def _check_number(where: str, value: Any, smallest: int) -> None:
    if type(value) is not int or not smallest <= value <= _MAX_NUMBER:
        raise InputError(f"`{where}` must be a whole number of at least {smallest}, got {shown(value)}")


def _check_keys(where: str, data: Any, known: list[str]) -> None:
    if not isinstance(data, dict) or set(data) != set(known):
        given = list(data) if isinstance(data, dict) else data
        raise InputError(f"`{where}` must have exactly the keys {', '.join(known)}, got {shown(given)}")
