"""Runs a function on a module as soon as that is imported, without importing it.

(wrapt has this too, but importing wrapt costs more than the rest of `import mlpfusion`.)
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Calls `function` with the module `name` when it is imported, at once if it is. When it is reloaded, again."""
    sys.meta_path.insert(0, _Finder(name, function))
    if name in sys.modules:
        function(sys.modules[name])


class _Finder:
    """Finds one module as the finders behind it do, and has its loader call the function at the end."""

    def __init__(self, name: str, function: Callable[[ModuleType], None]):
        self.name, self.function = name, function

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the module; None for every other one."""
        if name != self.name:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in behind)
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == self.name:  # modules of one zip file share their loader
                    self.function(module)

            spec.loader.exec_module = exec_module  # of this loader alone, whose type stays what others expect
        return spec
