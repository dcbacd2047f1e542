"""Random number generators: the global ones, used by transformers, and one a site."""

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
    """Seeds the global generators inside the block and restores them after.

    The generators of Python, NumPy and torch, on all devices.

    >>> with seeded(0):
    ...     first = torch.rand(3)
    >>> with seeded(0):
    ...     assert torch.equal(torch.rand(3), first)
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def streams(device: torch.device) -> dict[str, Any]:
    """Returns the states of the global generators and of `device`'s, as plain values and tensors.

    >>> state = streams(torch.device("cpu"))
    >>> number = random.random()
    >>> set_streams(state, torch.device("cpu"))
    >>> random.random() == number
    True
    """
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    states = {"python": random.getstate(), "numpy": (name, keys.tolist(), *rest), "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_streams(states: dict[str, Any], device: torch.device) -> None:
    """Restores the states returned by `streams`."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"])


def site_generator(seed: int, path: str) -> torch.Generator:
    """Returns the generator of one site, by the seed and the module path alone.

    Which other sites are compressed does not matter.

    >>> first, again = site_generator(0, "layers.1.mlp"), site_generator(0, "layers.1.mlp")
    >>> torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=again))
    True
    """
    # A hash, not seed + index: sites of one run, and of runs with neighbouring seeds, are
    # independent.
    digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
