"""How the commands end when something is wrong."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def reported_errors() -> Iterator[None]:
    """Bad input ends in one line on stderr and exit code 2, a warning in one line.

    SIGTERM unwinds the stack, so that nothing is left behind.
    """
    from transformers.utils import logging

    from mlpfusion.errors import InputError, one_line

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
            yield
    except InputError as error:
        click.echo(f"Error: {one_line(error, None)}", err=True)
        sys.exit(2)
