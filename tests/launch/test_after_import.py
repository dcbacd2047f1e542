"""The hook on the import of a module."""

import importlib
import sys
import zipfile

import pytest

from mlpfusion.after_import import after_import


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """A function that hooks a module: name -> list of the values that the hook saw in it."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "waited_for.py").write_text("VALUE = 1\n")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("waited_in_zip.py", "VALUE = 2\n")
        archive.writestr("other_in_zip.py", "VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))

    def hook(name):
        found = []
        after_import(name, lambda module: found.append(module.VALUE))
        return found

    yield hook
    for name in ("waited_for", "waited_in_zip", "other_in_zip"):
        sys.modules.pop(name, None)


def test_the_hook_sees_the_whole_module_once_it_is_imported_and_again_when_it_is_reloaded(seen):
    found = seen("waited_for")
    assert found == []
    module = importlib.import_module("waited_for")
    assert found == [1]
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    importlib.reload(module)
    assert found == [1, 1]


def test_a_module_that_is_imported_already_is_seen_at_once(seen):
    importlib.import_module("waited_for")
    assert seen("waited_for") == [1]


def test_two_hooks_see_one_module(seen):
    first, second = seen("waited_for"), seen("waited_for")
    importlib.import_module("waited_for")
    assert (first, second) == ([1], [1])


def test_a_module_that_shares_its_loader_is_not_seen(seen):
    found = seen("waited_in_zip")
    importlib.import_module("waited_in_zip")
    importlib.import_module("other_in_zip")
    assert found == [2]


def test_a_module_that_is_not_there_stays_so(seen):
    seen("not_there")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        importlib.import_module("not_there")
