"""The global random streams, which transformers draws from, seeded for a while and put back."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from transformers import set_seed


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's streams (all devices) start from `seed` inside, and go on as before outside."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def streams(device: torch.device) -> dict[str, Any]:
    """Where the global streams of this process are, that of `device` included, as plain values and tensors."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    found = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        found["device"] = torch.get_device_module(device).get_rng_state()
    return found


def set_streams(found: dict[str, Any], device: torch.device) -> None:
    """Puts the streams where `streams` found them."""
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    torch.set_rng_state(found["torch"])
    if device.type != "cpu" and "device" in found:
        torch.get_device_module(device).set_rng_state(found["device"])


def site_generator(seed: int, path: str) -> torch.Generator:
    """The random stream of one site: it depends on the seed and the site alone, not on which others are compressed."""
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
