"""The processes of one `accelerate launch`: all train one model, the first decides."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from mlpfusion.errors import InputError

Answer = TypeVar("Answer")


def on_cpu(device: str) -> bool:
    """Whether a job with `device` trains on the CPU: by choice, or for lack of an accelerator.

    >>> on_cpu("cpu")
    True
    """
    return device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def join_processes(device: str) -> None:
    """Connects this process with the others of its launch. Call before any `PartialState`."""
    PartialState(cpu=on_cpu(device))


def is_first() -> bool:
    """Returns True in the process that speaks for the others of its launch, and where none was joined."""
    return not torch.distributed.is_initialized() or PartialState().is_main_process


def of_first(answer: Callable[[], Answer]) -> Answer:
    """Returns the answer of the first process, in all that were joined. Also an `InputError` it raises.

    >>> of_first(lambda: "yes")
    'yes'
    """
    if not torch.distributed.is_initialized():
        return answer()
    outcome: list[tuple[Answer | None, InputError | None]] = [(None, None)]
    if is_first():
        try:
            outcome = [(answer(), None)]
        except InputError as error:
            outcome = [(None, error)]
    value, error = broadcast_object_list(outcome)[0]
    if error is not None:
        raise error
    return cast(Answer, value)
