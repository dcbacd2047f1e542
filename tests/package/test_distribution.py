"""The wheel and the source distribution: what is in them, and what they do for a stranger who installs them."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pico import pico_model

import mlpfusion

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mlpfusion"
VERSION = mlpfusion.__version__

pytestmark = pytest.mark.slow


def build(source: Path, target: str, out: Path) -> Path:
    """The distribution that hatchling makes of a source folder, as `pip` and `make dist` call it."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def source_contents(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}


def test_the_wheel_is_the_package_with_its_data_and_nothing_else(wheel):
    inside = {name for name in contents(wheel) if not name.startswith(f"mlpfusion-{VERSION}.dist-info/")}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert inside == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    for suffix in ("/py.typed", ".yaml", "/four_authors.jsonl.gz"):
        assert any(name.endswith(suffix) for name in inside), suffix


def test_the_wheel_says_what_it_is(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = f"mlpfusion-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        raw = archive.read(f"{folder}/METADATA")
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert b"mlpfusion = mlpfusion.cli:main" in archive.read(f"{folder}/entry_points.txt")
    metadata = Metadata.from_email(raw, validate=True)
    assert (metadata.name, str(metadata.version), metadata.summary) == ("mlpfusion", VERSION, project["description"])
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert set(metadata.provides_extra or ()) == set(project["optional-dependencies"])
    assert message_from_bytes(raw)["Description-Content-Type"] == "text/markdown"


def test_the_source_makes_the_same_wheel(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert build(source, "wheel", tmp_path / "out").read_bytes() == wheel.read_bytes()


def test_the_source_has_the_tests_and_no_results(sdist):
    inside = source_contents(sdist)
    assert {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "tests/conftest.py"} <= inside
    assert not [name for name in inside if name.startswith((".git/", "benchmarks/results", "site/", "dist/", ".venv"))]
    assert ".git" not in inside


def test_the_sizes_are_sensible(wheel, sdist):
    assert wheel.stat().st_size < 1_000_000
    assert sdist.stat().st_size < 2_500_000


def installed_by_pip(wheel: Path) -> Iterator[importlib.metadata.Distribution]:
    """What `pip install` of the wheel brings along without an extra, as it is installed here."""
    (metadata,) = importlib.metadata.distributions(path=[str(wheel)])
    wanted, seen = list(metadata.requires or ()), set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for needed in map(Requirement, distribution.requires or ()):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                wanted.append(str(needed))
        yield distribution


@pytest.fixture(scope="module")
def stranger(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and its dependencies, these by links: they are gigabytes."""
    folder = tmp_path_factory.mktemp("stranger") / "environment"
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for distribution in installed_by_pip(wheel):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--no-index", "--quiet", str(wheel)], check=True, capture_output=True)
    return folder / "bin"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a program of the stranger's, in its folder and without a trace of this environment."""
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, check=False, cwd=program.parent, env=environment, capture_output=True, text=True)


def test_vllm_finds_the_import_of_the_package(stranger):
    """As `load_general_plugins` of vLLM does: every entry point of the group is loaded and called, maybe twice."""
    code = (
        "import sys; from importlib.metadata import entry_points; "
        "(found,) = entry_points(group='vllm.general_plugins'); function = found.load(); function(); function(); "
        "print(found.name, found.value, 'torch' in sys.modules)"
    )
    done = run(stranger / "python", "-c", code)
    assert done.stderr == ""
    assert done.stdout == "mlpfusion mlpfusion.launch.vllm_plugin:register False\n"


def test_a_stranger_is_greeted(stranger):
    program = stranger / "mlpfusion"
    assert run(program, "--version").stdout == f"mlpfusion, version {VERSION}\n"
    greeting = run(program, "--help")
    assert (greeting.returncode, greeting.stderr) == (0, "")
    assert "mlpfusion inspect MODEL" in greeting.stdout
    for file in ("py.typed", "__init__.py"):
        where = run(stranger / "python", "-c", "import mlpfusion; print(mlpfusion.__path__[0])").stdout.strip()
        assert Path(where, file).is_file()
        assert Path(where).is_relative_to(stranger.parent)


@pytest.mark.parametrize(
    ("command", "extra"), [("tune model out --task sst2", "tune"), ("reproduce table2", "tune"), ("demo", "demo")]
)
def test_a_command_without_its_extra_names_it(stranger, command, extra):
    refused = run(stranger / "mlpfusion", *command.split())
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert f"pip install 'mlpfusion[{extra}]'" in line


def test_a_stranger_imports_every_public_name(stranger):
    done = run(stranger / "python", "-c", "import mlpfusion\nfor name in dir(mlpfusion): getattr(mlpfusion, name)")
    assert done.returncode == 0, done.stderr


def test_a_stranger_compresses_a_model(stranger, tmp_path):
    pico_model("llama").save_pretrained(tmp_path / "model")
    done = run(stranger / "mlpfusion", "compress", tmp_path / "model", tmp_path / "out", "--keep-ratio", "0.5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
