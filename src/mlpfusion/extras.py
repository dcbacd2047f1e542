"""Optional packages: which command needs which, and how to install them."""

from importlib.util import find_spec

from mlpfusion.errors import InputError


def check_training_installed() -> None:
    """Raises `InputError` if a package needed for training is missing."""
    missing = missing_for_training()
    if missing:
        raise InputError(f"training needs {missing}: pip install 'mlpfusion[tune]'")


def missing_for_training() -> str:
    """Lists the missing packages needed for training, separated by commas."""
    needed = {"accelerate": "accelerate", "scipy": "scipy", "sklearn": "scikit-learn"}
    return ", ".join(package for module, package in needed.items() if find_spec(module) is None)
