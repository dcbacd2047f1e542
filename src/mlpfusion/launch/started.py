"""Runs a tool behind the import of this package: `python -m mlpfusion.launch.started KIND TOOL ARGUMENTS`."""

import runpy
import sys
from importlib.metadata import entry_points
from pathlib import Path


def main() -> None:
    """Runs what `sys.argv` names, as if it had been started itself."""
    kind, tool = sys.argv[1:3]
    sys.argv[:3] = [tool]
    if kind == "script":
        sys.path[0] = str(Path(tool).resolve().parent)
        runpy.run_path(tool, run_name="__main__")
    elif kind == "command":
        sys.modules["__main__"].__package__ = None  # click names a program by it
        (command, *_) = entry_points(group="console_scripts", name=tool)
        sys.exit(command.load()())
    else:
        runpy.run_module(tool, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
