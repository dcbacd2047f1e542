"""The examples in the docstrings of the package run and print what they say.

Beside the names of its module an example may use `torch` and `folder`, the path of an empty folder.
"""

import doctest
import pkgutil
from importlib import import_module

import torch

import mlpfusion

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules() -> list[str]:
    """All modules of the package, without those that are scripts: the command, and what runs an export."""
    names = [module.name for module in pkgutil.walk_packages(mlpfusion.__path__, "mlpfusion.")]
    scripts = ("mlpfusion.__main__", "mlpfusion.export.runners.")
    return ["mlpfusion", *(name for name in names if not name.startswith(scripts))]


def test_the_examples_in_docstrings_run(tmp_path):
    runner, output = doctest.DocTestRunner(optionflags=FLAGS), []
    for name in modules():
        for example in doctest.DocTestFinder().find(import_module(name), name):
            folder = tmp_path / example.name
            folder.mkdir(exist_ok=True)
            example.globs |= {"torch": torch, "folder": folder}
            runner.run(example, out=output.append)
    assert not runner.failures, "".join(output)
    assert runner.tries > 200, f"only {runner.tries} examples were found"
