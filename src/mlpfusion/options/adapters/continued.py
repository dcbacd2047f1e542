"""An adapter in a folder that trains again."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Continued:
    """The adapter of DSEE or LoRA in `folder`, trained on by a new optimiser. `merge`: it is added to the weights."""

    folder: str
    merge: bool = False
