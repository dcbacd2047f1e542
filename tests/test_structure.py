"""The shape of the house: imports point left, files and functions stay short, nothing dangerous is called."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mlpfusion"
FILES = sorted(SOURCE.rglob("*.py"))
# The rooms of the house, in the order of the work. A module may import from its own room and from those before it.
ROOMS = [
    ("errors",),
    ("after_import", "checks", "extras", "mlp", "progress", "seeds"),
    ("storage",),
    ("options",),
    ("batch", "cluster", "kernel"),
    ("sites",),
    ("heads",),
    ("kinds",),
    ("record",),
    ("checkpoint",),
    ("data",),
    ("loop",),
    ("methods",),
    ("compression",),
    ("dsee",),
    ("generation",),
    ("tune",),
    ("measure",),
    ("export",),
    ("launch",),
    ("report",),
    ("reproduce",),
    ("commands",),
    ("demo",),
    ("cli", "__main__"),
]
LINE = " | ".join(", ".join(names) for names in ROOMS)
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))


def place(room: str) -> int:
    """The number of a room in `ROOMS`; fails with what to do for one that has none."""
    found = [index for index, names in enumerate(ROOMS) if room in names]
    assert found, f"add `{room}` to ROOMS in {Path(__file__).name}, right of all that it imports; today: {LINE}"
    return found[0]


def imported_modules(path: Path) -> set[str]:
    """First names below `mlpfusion` that a file imports, at any depth of its code; "" for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mlpfusion":
            found.add((node.module or "").partition(".")[2].partition(".")[0])
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return found


@each_file
def test_imports_point_left(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    imported = imported_modules(path)
    assert "" not in imported, (
        f"{room} must import what it needs from its module, not from the package, which imports all"
    )
    wrong = {name for name in imported if place(name) > place(room)}
    assert not wrong, (
        f"{room} must not import from {', '.join(sorted(wrong))}, which stand right of it: {LINE}. "
        "Move the function to the leftmost room that has all it needs, or hand the value over as an argument"
    )


def imported_files(path: Path) -> set[Path]:
    """The files of the package that `path` imports, at any depth of its code, without those of whole packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlpfusion."):
            module = SOURCE.joinpath(*(node.module or "").split(".")[1:])
            names = [module.with_suffix(".py"), *(module / f"{alias.name}.py" for alias in node.names)]
            found |= {name for name in names if name.is_file()}
    return found


def test_no_file_imports_itself_by_way_of_others():
    waiting = {path: imported_files(path) for path in FILES}
    while free := [path for path, imports in waiting.items() if not imports & waiting.keys()]:
        for path in free:
            del waiting[path]
    circle = sorted(str(path.relative_to(SOURCE)) for path in waiting)
    assert not circle, (
        f"these import each other in a circle: {', '.join(circle)}; move what both need into a third file"
    )


def test_rooms_are_small():
    """At most 12 modules at the root and in a folder, an empty `__init__.py` not counted: more have no order."""
    for folder in {path.parent for path in FILES}:
        files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py" or path.read_text()]
        assert len(files) <= 12, f"{folder.relative_to(SOURCE)} has {len(files)} files, at most 12: make a room of some"


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
