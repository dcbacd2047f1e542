"""A tool that knows nothing of this package, run in a process that imports it."""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from mlpfusion.errors import InputError, shown

_STARTED = "mlpfusion.launch.started"


def kind_of_tool(tool: str) -> str:
    """What `tool` is: "script", "command" (of an installed package) or "module". Raises `InputError`.

    >>> kind_of_tool("json.tool")
    'module'
    """
    if Path(tool).is_file():
        return "script"
    if entry_points(group="console_scripts", name=tool):
        return "command"
    if (spec := _spec(tool)) is None:
        raise InputError(f"`tool` must be a script, or a command or module that is installed, got {shown(tool)}")
    if spec.submodule_search_locations is not None and _spec(f"{tool}.__main__") is None:
        raise InputError(f"`tool` must be a module that runs, got {shown(tool)}, a package without `__main__`")
    return "module"


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is; None if it, or a package that it is in, is not installed."""
    package = module.rpartition(".")[0]
    if not module.replace(".", "_").isidentifier() or (package and _spec(package) is None):
        return None
    return find_spec(module)


def run_tool(tool: str, arguments: Sequence[str]) -> NoReturn:
    """Becomes the tool. Raises `InputError` as `kind_of_tool` does.

    This process is replaced, so signals reach the tool and its exit code is that of this command.
    """
    kind = kind_of_tool(tool)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", _STARTED, kind, tool, *arguments])  # noqa: S606  (no shell is meant)
