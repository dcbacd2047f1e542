"""Loads a model with the adapter beside it."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from mlpfusion.checkpoint.files import adapter_beside
from mlpfusion.checkpoint.open import open_checkpoint
from mlpfusion.errors import InputError
from mlpfusion.extras import ADAPTER


def load_adapted(folder: str | Path, *, is_trainable: bool = False) -> Any:
    """Returns the `PeftModel` that `sparsify` or `tune --adapter` wrote into `folder`, unmerged.

    The weights keep their zeros; A, B, S and the head of the adapter stand beside them. With `is_trainable` they
    train. Raises `InputError` without peft, and for a folder without such an adapter.
    """
    ADAPTER.check()
    from mlpfusion.dsee.adapter.saved import put_on, read_adapter

    beside = adapter_beside(Path(folder))
    if beside is None:
        raise InputError(f"`folder` must hold a model with an adapter beside it, not merged, got {folder}")
    model = open_checkpoint(str(folder), with_adapter=True).load()
    return put_on(model, read_adapter(str(beside)), is_trainable=is_trainable)


def put_beside_on(model: PreTrainedModel, folder: Path) -> None:
    """Puts the adapter beside a checkpoint on its model, in place, if there is one.

    Raises `InputError` without peft.
    """
    beside = adapter_beside(folder)
    if beside is not None:
        ADAPTER.check()
        from mlpfusion.dsee.adapter.saved import put_on, read_adapter

        put_on(model, read_adapter(str(beside)), is_trainable=False)
