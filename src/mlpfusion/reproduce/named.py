"""The experiments in the package, by name; listing them needs no extra."""

from importlib import resources
from pathlib import Path

from mlpfusion.checks import user_path
from mlpfusion.errors import InputError, shown
from mlpfusion.storage.yaml import read_yaml


def named_experiments() -> dict[str, Path]:
    """Maps the names of the experiments in the package to their YAML files.

    >>> named_experiments()["table2"].name
    'table2.yaml'
    """
    folder = Path(str(resources.files("mlpfusion.reproduce"))) / "experiments"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def experiment_list() -> str:
    """Lists names and titles, one experiment per line."""
    titles = {name: read_yaml(file, "experiment")["title"] for name, file in named_experiments().items()}
    width = max(map(len, titles))
    return "\n".join(f"{name:{width}}  {title}" for name, title in titles.items())


def experiment_file(name: str) -> Path:
    """The YAML file of an experiment, by its name in the package or its path. Raises `InputError` without one."""
    known = named_experiments()
    file = known.get(name) or user_path("experiment", name)
    if not file.is_file():
        raise InputError(f"`experiment` must be a YAML file or one of {', '.join(known)}, got {shown(name)}")
    return file
