"""Errors of commands: one line on stderr and an exit code.

Exit codes: 2 for bad input, 3 for the machine's refusals (disk, memory, permissions), 130 for
Ctrl-C, 143 for SIGTERM.
"""

import errno
import io
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

# In torch's RuntimeErrors for full memory or a full disk.
_TORCH_OUT_OF_ROOM = ("can't allocate memory", "inline_container", "PytorchStreamWriter", "out of memory")
# The errno in messages of Rust libraries (safetensors, tokenizers; the latter raises a plain Exception).
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")
_CURES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "check who may write there",
    errno.EROFS: "write to another place",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


# Parameters of commands that name a file of options.
_FILES = ("config", "recipe", "experiment")


class _Terminated(SystemExit):
    """SIGTERM as an exception: the stack unwinds, nothing is left behind."""


@contextmanager
def reported_errors(go_on: str = "") -> Iterator[None]:
    """Ends a failed command with one line on stderr.

    Warnings are printed as one line each. `go_on`: advice after Ctrl-C and SIGTERM. Bugs of the
    program keep their traceback; --debug shows it for all errors.
    """
    go_on = go_on or "Nothing half-written is left."
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _calm_libraries():
            signal.signal(signal.SIGTERM, _terminate)
            yield
    except KeyboardInterrupt:
        _end_once(f"Interrupted. {go_on}", 130)
    except _Terminated:
        _end_once(f"Terminated. {go_on}", 143)
    except BaseException as error:
        if not _is_expected(error):
            raise
        _report(error)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated(143)


@contextmanager
def _calm_libraries() -> Iterator[None]:
    """Silences other libraries while open, and prints every warning as one line."""
    from transformers.utils import logging as transformers_logging

    from mlpfusion.errors import printable

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: click.echo(
            f"Warning: {_with_flags(printable(' '.join(str(message).split())))}", err=True
        )
        yield


def _is_expected(error: BaseException) -> bool:
    """True for errors caused by the user or the machine.

    False for bugs, and for a closed pipe.
    """
    from safetensors import SafetensorError

    from mlpfusion.errors import InputError

    if isinstance(error, OSError):
        return error.errno != errno.EPIPE  # click ends quietly
    if isinstance(error, InputError | SafetensorError | MemoryError | RecursionError | UnicodeError):
        return True
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in _TORCH_OUT_OF_ROOM)
    return type(error) is Exception and _OS_ERROR.search(str(error)) is not None


def _report(error: BaseException) -> NoReturn:
    """Ends the command with the line and the exit code of `error`."""
    from mlpfusion.errors import InputError, one_line

    if isinstance(error, InputError):
        _end_once(f"Error: {_with_flags(one_line(error, None))}", 2)
    _end(f"Error: {_in_words(error)}. MLPFUSION_DEBUG=1 shows where", 3)


def _end_once(line: str, code: int) -> NoReturn:
    """Ends the command; of several processes (torchrun) only the first prints the line."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _end(line, code)
    sys.exit(code)


def _end(line: str, code: int) -> NoReturn:
    root = click.get_current_context().find_root()
    if root.params.get("debug"):
        click.echo(traceback.format_exc(), err=True, nl=False)
    click.echo(line, err=True)
    sys.exit(code)


def _in_words(error: BaseException) -> str:
    """One line on a refusal of the machine: reason, place, cure."""
    from mlpfusion.errors import one_line, printable

    if isinstance(error, UnicodeError):
        return f"a name or text cannot be written: {one_line(error)}; PYTHONUTF8=1 helps if your names are UTF-8"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply: {one_line(error)}"
    reason, number = one_line(error) or "there is not enough memory", 0
    if isinstance(error, OSError) and error.strerror:
        names = [printable(str(name)) for name in (error.filename, error.filename2) if name is not None]
        reason, number = ": ".join([error.strerror, *names[:1]]), error.errno or 0
    elif match := _OS_ERROR.search(str(error)):
        number = int(match[1])
    cure = _CURES.get(number, "")
    if isinstance(error, MemoryError) or (not number and "memory" in reason):
        cure = "use a smaller model, batch or number of samples, or a machine with more memory"
    out = click.get_current_context().params.get("out")
    where = f" (OUT is {printable(str(out))})" if out and str(out) not in reason else ""
    return reason.rstrip(".") + where + (f"; {cure}" if cure else "")


def _with_flags(message: str) -> str:
    """Replaces fields in backticks by flags: `keep_ratio` -> `--keep-ratio`, `model` -> MODEL.

    Fields set in a file of options stay, and so do fields followed by ` of ` (parts of a file).
    """
    context = click.get_current_context()
    typed = {}
    has_file = any(context.params.get(name) is not None for name in _FILES)
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if not has_file or source is click.core.ParameterSource.COMMANDLINE:
            typed[parameter.name] = parameter

    if "seeds" in typed:  # every one of `--seeds` is checked under the name `seed`
        typed.setdefault("seed", typed["seeds"])

    def flag(match: re.Match[str]) -> str:
        parameter = typed.get(match[1])
        if isinstance(parameter, click.Argument):
            return parameter.human_readable_name
        if isinstance(parameter, click.Option):
            return f"`{max(parameter.opts, key=len)}{' ' + match[2] if match[2] else ''}`"
        return match[0]

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`(?! of )", flag, message)
