"""Tools in processes of their own load compressed checkpoints behind `mlpfusion run` or the file of `autoload`."""

import os
import signal
import subprocess
import sys

import pytest
from command import call, refused
from pico import pico_model

import mlpfusion
from mlpfusion.launch import autoload

TOOL = """
import sys
from transformers import AutoModel
print("width", AutoModel.from_pretrained(sys.argv[1]).encoder.layer[0].intermediate.dense.out_features)
"""
ECHO = "import sys, beside; print(__name__, sys.argv, beside.WORD); sys.exit(7)\n"
WAITS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""


def process(*words, paths=(), **how):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *sys.path])}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
    )  # fmt: skip


def ran(*words, paths=(), **how):
    """Exit code of Python with these words, and its output; if there is none, what went to stderr."""
    with process(*words, paths=paths, **how) as run:
        out, error = run.communicate(timeout=600)
    return run.returncode, out or error


@pytest.fixture
def cut(tmp_path):
    model = pico_model("bert")
    mlpfusion.compress(model, mlpfusion.Fusion(), width=14)
    model.save_pretrained(tmp_path / "cut")
    return tmp_path / "cut"


@pytest.fixture
def tool(tmp_path):
    """A function that writes a script: text -> file."""

    def write(text):
        (tmp_path / "beside.py").write_text("WORD = 'found'\n")
        (tmp_path / "some_tool.py").write_text(text)
        return tmp_path / "some_tool.py"

    return write


@pytest.mark.slow
def test_a_script_and_a_module_load_a_compressed_checkpoint(cut, tool, tmp_path):
    assert ran("-m", "mlpfusion", "run", "--", tool(TOOL), cut) == (0, "width 14\n")
    assert ran("-m", "mlpfusion", "run", "--", "some_tool", cut, paths=[tmp_path]) == (0, "width 14\n")


def test_a_tool_gets_its_arguments_and_the_files_beside_it_and_gives_its_exit_code(tool, tmp_path):
    script = tool(ECHO)
    found = ran("-m", "mlpfusion", "run", "--", script, "--flag", "a b", "--", "--json", cwd="/")
    assert found == (7, f"__main__ [{str(script)!r}, '--flag', 'a b', '--', '--json'] found\n")
    code, said = ran("-m", "mlpfusion", "run", "some_tool", "word", cwd=tmp_path)
    assert (code, said) == (7, f"__main__ [{str(script)!r}, 'word'] found\n")


def test_an_installed_command_runs_under_its_name():
    code, said = ran("-m", "mlpfusion", "run", "--", "pytest", "--version")
    assert code == 0
    assert said.startswith("pytest ")


def test_signals_reach_the_tool(tool):
    with process("-m", "mlpfusion", "run", "--", tool(WAITS)) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=30) == 5


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("no_such_tool", "Error: TOOL must be a script, or a command or module that is installed, got 'no_such_tool'"),
        ("json.no.tool", "Error: TOOL must be a script, or a command or module that is installed, got 'json.no.tool'"),
        ("../json", "Error: TOOL must be a script, or a command or module that is installed, got '../json'"),
        ("json", "Error: TOOL must be a module that runs, got 'json', a package without `__main__`"),
    ],
)
def test_a_tool_that_is_not_there_is_one_line(tool, message):
    assert refused("run", "--", tool) == message


def test_nothing_to_run_is_an_error():
    result = call("run", "--")
    assert result.exit_code == 2
    assert "Missing argument 'TOOL'" in result.stderr


@pytest.mark.slow
def test_every_python_loads_a_compressed_checkpoint_while_autoload_is_on(cut, tool, tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr(autoload.sysconfig, "get_path", lambda name: str(packages))
    start = f"import site; site.addsitedir({str(packages)!r}); import runpy; runpy.run_path({str(tool(TOOL))!r})"
    assert call("autoload", "on").exit_code == 0
    assert ran("-c", start, cut) == (0, "width 14\n")
    (file,) = packages.iterdir()
    uninstalled = file.read_text() + "import sys; assert 'mlpfusion' not in sys.modules"
    assert ran("-I", "-S", "-c", uninstalled) == (0, "")
    assert call("autoload", "off").exit_code == 0
    assert not list(packages.iterdir())
    assert call("autoload", "off").exit_code == 0
    code, said = ran("-c", start, cut)
    assert code == 1
    assert "ignore_mismatched_sizes" in said


def test_another_state_is_one_line():
    assert refused("autoload", "maybe") == "Error: STATE must be on or off, got 'maybe'"


def test_importing_the_package_imports_nothing_but_the_standard_library():
    script = (
        "import sys; before = set(sys.modules); import mlpfusion; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    assert ran("-c", script) == (0, "['mlpfusion']\n")
