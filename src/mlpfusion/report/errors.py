"""How the commands end when something is wrong: in one line on stderr, whoever is to blame.

Exit codes: 2 for bad input, 3 for what the machine refuses (disk, memory, rights), 130 for Ctrl-C, 143 for SIGTERM.
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

# What torch says as a RuntimeError where memory or the disk is full.
_TORCH_OUT_OF_ROOM = ("can't allocate memory", "inline_container", "PytorchStreamWriter", "out of memory")
# How libraries in Rust (safetensors, tokenizers) name the number of an error, the second of them in a plain Exception.
_OS_ERROR = re.compile(r"\(os error ([0-9]+)\)")
_CURES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EACCES: "check who may write there",
    errno.EROFS: "write to another place",
    errno.EMFILE: "allow more open files (ulimit -n)",
}


class _Terminated(SystemExit):
    """SIGTERM came; raised so that the stack unwinds and nothing is left behind."""


@contextmanager
def reported_errors(go_on: str = "") -> Iterator[None]:
    """Ends the command in one line on stderr where something is wrong, and prints a warning as one line.

    `go_on` says after Ctrl-C and SIGTERM how to go on. Errors of the program itself keep their traceback; with --debug
    all have one.
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
        if not _is_told(error):
            raise
        _report(error)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated(143)


@contextmanager
def _calm_libraries() -> Iterator[None]:
    """Inside, other libraries print nothing on their own, and warnings are one line each."""
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


def _is_told(error: BaseException) -> bool:
    """Whether a user or the machine caused `error`, and not the program or a reader that has gone."""
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
    """Ends with the line and the code of `error`."""
    from mlpfusion.errors import InputError, one_line

    if isinstance(error, InputError):
        _end_once(f"Error: {_with_flags(one_line(error, None))}", 2)
    _end(f"Error: {_in_words(error)}. MLPFUSION_DEBUG=1 shows where", 3)


def _end_once(line: str, code: int) -> NoReturn:
    """Ends with a line that the first process of torchrun tells: the others would say the same."""
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
    """What the machine refused, where, and what to do about it."""
    from mlpfusion.errors import one_line, printable

    if isinstance(error, UnicodeError):
        return f"a name or text cannot be written: {one_line(error)}; PYTHONUTF8=1 helps if your names are UTF-8"
    if isinstance(error, RecursionError):
        return f"the input is nested too deeply: {one_line(error)}"
    reason, number = one_line(error) or "there is not enough memory", 0
    if isinstance(error, OSError) and error.strerror:
        names = [printable(str(name)) for name in (error.filename, error.filename2) if name is not None]
        reason, number = ": ".join([error.strerror, *names[:1]]), error.errno or 0
    elif found := _OS_ERROR.search(str(error)):
        number = int(found[1])
    cure = _CURES.get(number, "")
    if isinstance(error, MemoryError) or (not number and "memory" in reason):
        cure = "use a smaller model, batch or number of samples, or a machine with more memory"
    out = click.get_current_context().params.get("out")
    where = f" (OUT is {printable(str(out))})" if out and str(out) not in reason else ""
    return reason.rstrip(".") + where + (f"; {cure}" if cure else "")


def _with_flags(message: str) -> str:
    """The message with the fields in backticks as they are typed: `keep_ratio` is `--keep-ratio`, `model` is MODEL.

    What stands in the file of --recipe stays a field, and so does what is said to be `of` something else.
    """
    context = click.get_current_context()
    typed = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if context.params.get("recipe") is None or source is click.core.ParameterSource.COMMANDLINE:
            typed[parameter.name] = parameter

    if "seeds" in typed:  # each of them is checked as a seed
        typed.setdefault("seed", typed["seeds"])

    def flag(match: re.Match[str]) -> str:
        parameter = typed.get(match[1])
        if isinstance(parameter, click.Argument):
            return parameter.human_readable_name
        if isinstance(parameter, click.Option):
            return f"`{max(parameter.opts, key=len)}{' ' + match[2] if match[2] else ''}`"
        return match[0]

    return re.sub(r"`([a-z_]+)(?:=([^`]+))?`(?! of )", flag, message)
