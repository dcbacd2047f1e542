"""What every process of vLLM loads before it reads a model: the import of this package."""

from mlpfusion.kinds.hook import register as register_kinds


def register() -> None:
    """Lets transformers load compressed checkpoints; vLLM may call this more than once in a process."""
    register_kinds()
