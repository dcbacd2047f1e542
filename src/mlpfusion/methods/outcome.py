"""What a one-shot method hands back."""

from dataclasses import dataclass, field

from mlpfusion.mlp import MLP


@dataclass(frozen=True)
class Narrowed:
    """A narrower block, and what the method has to say about it (numbers that go into the record)."""

    mlp: MLP
    metrics: dict[str, float] = field(default_factory=dict)
