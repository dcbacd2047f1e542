"""The recipes that the package carries; listing them needs nothing of what training needs."""

from importlib import resources
from pathlib import Path

from mlpfusion.storage.yaml import read_yaml


def named_recipes() -> dict[str, Path]:
    """The recipes, by name."""
    folder = Path(str(resources.files("mlpfusion.reproduce"))) / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def recipe_list() -> str:
    """A line a recipe: name, title."""
    found = {name: read_yaml(file, "recipe")["title"] for name, file in named_recipes().items()}
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {title}" for name, title in found.items())
