"""The errors that a user can cause and mend, and the one warning about a result."""

from importlib.util import find_spec


class InputError(ValueError):
    """Bad input. The message is one line: the field, the allowed values, the value given."""


class DivergenceError(InputError):
    """The loss or the weights became NaN or Inf."""


class DegenerateClusteringWarning(UserWarning):
    """One cluster swallowed a large part of the neurons while most others hold a single one."""


def one_line(error: BaseException, max_length: int | None = 300) -> str:
    """The message of an error of another library as one line, cut if it is long."""
    return " ".join(str(error).split())[:max_length]


def check_training_installed() -> None:
    """Raises `InputError` if a package that only training needs is missing."""
    needed = {"accelerate": "accelerate", "scipy": "scipy", "sklearn": "scikit-learn"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise InputError(f"training needs {', '.join(missing)}: pip install 'mlpfusion[tune]'")
