"""Optional packages: what a command needs that is not installed, and how it gets there."""

from importlib.util import find_spec

from mlpfusion.errors import InputError


def check_training_installed() -> None:
    """Raises `InputError` if a package that only training needs is missing."""
    missing = missing_for_training()
    if missing:
        raise InputError(f"training needs {missing}: pip install 'mlpfusion[tune]'")


def missing_for_training() -> str:
    """The packages that only training needs and that are missing, with commas."""
    needed = {"accelerate": "accelerate", "scipy": "scipy", "sklearn": "scikit-learn"}
    return ", ".join(package for module, package in needed.items() if find_spec(module) is None)
