"""The key `mlp_fusion_heads` of a model's config: which heads of which attentions are left."""

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from transformers import PreTrainedConfig

from mlpfusion.errors import InputError, shown
from mlpfusion.heads.table import attentions_of

KEY = "mlp_fusion_heads"
VERSION = 1
_NAMES = ("version", "source_sha256", "kept", "checksum")
_MAX_SITES, _MAX_HEADS = 100_000, 4096
# Why a model without some of its heads cannot be folded into a stock one.
NO_STOCK_FORM = "heads were removed, which is not written as a stock config"


@dataclass(frozen=True)
class HeadsKey:
    """The heads that are left, by the path of their attention from the base model, as numbers before the cut."""

    kept: dict[str, list[int]]
    source_sha256: str


def key_to_dict(key: HeadsKey) -> dict[str, Any]:
    """The key as JSON data, with the version of this form and a checksum."""
    data = {"version": VERSION, "source_sha256": key.source_sha256, "kept": key.kept}
    return data | {"checksum": _checksum(data)}


def heads_key(config: PreTrainedConfig) -> HeadsKey | None:
    """The key of a config, None without one. Raises `InputError` if it is malformed, or does not fit the config."""
    data = getattr(config, KEY, None)
    if data is None:
        return None
    if not isinstance(data, dict) or type(data.get("version")) is not int or not 1 <= data["version"] <= VERSION:
        found = data.get("version") if isinstance(data, dict) else data
        raise InputError(f"`{KEY}.version` must be {VERSION}, got {shown(found)}; upgrade mlpfusion to load it")
    if set(data) != set(_NAMES):
        raise InputError(f"`{KEY}` must have exactly the keys {', '.join(_NAMES)}, got {shown(list(data))}")
    if not isinstance(data["source_sha256"], str) or not re.fullmatch("[0-9a-f]{64}", data["source_sha256"]):
        raise InputError(f"`{KEY}.source_sha256` must be 64 hexadecimal digits, got {shown(data['source_sha256'])}")
    kept = data["kept"]
    if not isinstance(kept, dict) or not 1 <= len(kept) <= _MAX_SITES:
        raise InputError(f"`{KEY}.kept` must name between 1 and {_MAX_SITES:,} attentions, got {shown(kept)}")
    for path, heads in kept.items():
        _check_path(config, path)
        _check_heads(path, heads)
    if data["checksum"] != _checksum(data):
        raise InputError(f"`{KEY}` must be as it was written, its checksum says that it was edited")
    return HeadsKey(kept, data["source_sha256"])


def _checksum(data: dict[str, Any]) -> str:
    rest = {name: value for name, value in data.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_path(config: PreTrainedConfig, path: Any) -> None:
    templates = [f"{row.layer}.{row.module}" for row in attentions_of(config.model_type)]
    patterns = [re.escape(template).replace(re.escape("{}"), "(0|[1-9][0-9]{0,8})") for template in templates]
    if not isinstance(path, str) or not any(re.fullmatch(pattern, path) for pattern in patterns):
        raise InputError(f"`{KEY}.kept` must name attentions {' or '.join(templates)}, got {shown(path)}")


def _check_heads(path: str, heads: Any) -> None:
    are_numbers = isinstance(heads, list) and all(type(head) is int and 0 <= head < _MAX_HEADS for head in heads)
    if not are_numbers or not heads or any(one >= two for one, two in pairwise(heads)):
        raise InputError(f"`{KEY}.kept` must hold rising numbers of heads for {path}, got {shown(heads)}")
