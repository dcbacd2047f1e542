"""Edits the key of a saved model, as a broken tool or somebody hostile would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpfusion.kinds.key import checksum


def change_key(folder: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = True) -> None:
    """Changes the key in the config of `folder`; with `seal`, the checksum is that of what it says then."""
    config = json.loads((folder / "config.json").read_text())
    key = config["mlp_fusion"]
    change(key)
    if seal and "checksum" in key:
        key["checksum"] = checksum(key)
    (folder / "config.json").write_text(json.dumps(config))
