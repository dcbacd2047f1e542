"""The examples in the docstrings of the package run and print what they say."""

import doctest
import pkgutil
from importlib import import_module

import torch

import mlpfusion

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules() -> list[str]:
    """All modules of the package, without the one that runs the command when it is imported."""
    names = [module.name for module in pkgutil.walk_packages(mlpfusion.__path__, "mlpfusion.")]
    return ["mlpfusion", *(name for name in names if name != "mlpfusion.__main__")]


def test_the_examples_in_docstrings_run():
    runner, output = doctest.DocTestRunner(optionflags=FLAGS), []
    for name in modules():
        for example in doctest.DocTestFinder().find(import_module(name), name, extraglobs={"torch": torch}):
            runner.run(example, out=output.append)
    assert not runner.failures, "".join(output)
    assert runner.tries > 100, f"only {runner.tries} examples were found"
