"""The shape of the house: imports point left, files and functions stay short, nothing dangerous is called."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mlpfusion"
FILES = sorted(SOURCE.rglob("*.py"))
# A module may import from its own group and from those before it.
ORDER = [
    {"checks", "errors", "finite", "mlp", "yaml"},
    {"cluster", "kernel"},
    {"methods"},
    {"record"},
    {"modules"},
    {"architectures"},
    {"install"},
    {"traces"},
    {"checkpoint"},
    {"plan"},
    {"row_check"},
    {"outcomes"},
    {"calibration"},
    {"budget"},
    {"compression"},
    {"tasks"},
    {"tune"},
    {"task_methods"},
    {"evaluate"},
    {"recipe", "task_recipe"},
    {"report", "export"},
    {"reproduce"},
    {"demo"},
    {"cli", "cli_errors", "cli_reproduce", "cli_tune", "__main__"},
]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def group(module: str) -> int:
    return next(index for index, names in enumerate(ORDER) if module in names)


def imported_modules(path: Path) -> set[str]:
    """First names below `mlpfusion` that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlpfusion."):
            found.add((node.module or "").split(".")[1])
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return found


@each_file
def test_imports_point_left(path):
    module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    wrong = {name for name in imported_modules(path) if group(name) > group(module)}
    assert not wrong


@each_file
def test_files_and_functions_are_short(path):
    """Forty lines and 300 are where to stop and think; sixty plain lines beat fragments that pass values around."""
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) else None
            length = (node.end_lineno or 0) - node.lineno + 1
            length -= (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
            assert length <= 60, f"{node.name} has {length} lines"


@each_file
def test_every_public_function_and_class_has_a_docstring(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), node.name


@each_file
def test_nothing_dangerous_or_global_is_used(path):
    text = path.read_text()
    for pattern in (
        r"\bpickle\b",
        r"torch\.load\(",
        r"torch\.manual_seed",
        r"except Exception",
        r"except:",
        r"trust_remote_code=True",
        r"\beval\(|\bexec\(",
        r"yaml\.load\(",
        r"set_default_dtype",
    ):
        hits = [line for line in text.splitlines() if re.search(pattern, line) and ".eval()" not in line]
        assert not hits, hits
    assert text.isascii()
