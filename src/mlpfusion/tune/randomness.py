"""The global random streams, which transformers draws from, seeded for a while and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

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
