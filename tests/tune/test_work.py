"""The folder of an unfinished job: one job at a time, never someone else's folder, never an older job's result."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import call, refused

from mlpfusion.checkpoint import stage
from mlpfusion.checkpoint.stage import is_whole
from mlpfusion.errors import DamageWarning, InputError
from mlpfusion.storage.unfinished import opened_work, work_folder

SETTINGS = {"epochs": 1}


def begin(out: Path, *, resume: bool = False, overwrite: bool = False) -> Any:
    return opened_work(out, SETTINGS, "record.json", resume=resume, overwrite=overwrite, reads=())


def test_a_second_job_ends_at_once_whatever_its_flags(tmp_path):
    out = tmp_path / "out"
    for flags in ({}, {"resume": True}, {"overwrite": True}):
        with begin(out, overwrite=True):
            (work_folder(out) / "states").mkdir()
            with pytest.raises(InputError, match="`out` must not be another running job's"), begin(out, **flags):
                pass
            assert (work_folder(out) / "states").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"out.unfinished"}


def test_what_a_dead_job_left_is_no_obstacle_and_goes(tmp_path):
    out = tmp_path / "out"
    with begin(out):
        pass
    (tmp_path / ".out.unfinished.lock").touch()
    (tmp_path / ".out.unfinished.removed-0a1b2c3d").mkdir()
    with begin(out, resume=True):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out.unfinished"}


@pytest.mark.parametrize("content", ["[]", "{}", "", "[" * 9999, '{"settings": {}, "overwrite": false}', None])
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_folder_that_is_no_unfinished_job_is_refused_and_stays(content, flag, tmp_path):
    out = tmp_path / "out"
    folder = work_folder(out)
    folder.mkdir()
    (folder / "thesis.tex").touch()
    if content is not None:
        (folder / "settings.json").write_text(content)
    with pytest.raises(InputError, match="must not have something else beside it"), begin(out, **{flag: True}):
        pass
    assert (folder / "thesis.tex").is_file()


def test_a_link_or_a_file_in_its_place_is_refused_and_stays(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    with begin(other):
        pass
    work_folder(out).symlink_to(work_folder(other))
    with pytest.raises(InputError, match="but it is a link"), begin(out, overwrite=True):
        pass
    work_folder(out).unlink()
    work_folder(out).touch()
    with pytest.raises(InputError, match="must not have something else"), begin(out, overwrite=True):
        pass
    assert work_folder(out).is_file()


def test_a_damaged_part_is_told_and_made_again(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.warns(DamageWarning, match="it holds no complete"):
        assert not is_whole(out)
    assert not out.exists()


def die(*_args: Any) -> None:
    """In the place of `put_in_place`: all is done but this."""
    raise KeyboardInterrupt


def test_a_job_that_replaces_an_older_result_is_resumed_and_not_taken_for_it(fused, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert call("tune", fused, out, *data, "--epochs", 1).exit_code == 0
    old = (out / "model.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(stage, "put_in_place", die)
        assert call("tune", fused, out, *data, "--overwrite").exit_code == 130
    assert (out / "model.safetensors").read_bytes() == old
    result = call("tune", fused, out, *data, "--resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recipe"]["epochs"] == 2
    assert (out / "model.safetensors").read_bytes() != old


@pytest.mark.filterwarnings("always::mlpfusion.errors.DamageWarning")
@pytest.mark.slow
def test_a_damaged_stage_is_made_again_and_a_broken_record_is_no_traceback(fused, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(stage, "put_in_place", die)
        assert call("tune", fused, out, *data).exit_code == 130
    (result,) = work_folder(out).glob("*/result")
    good = (result / "model.safetensors").read_bytes()
    for name, content in (("stage.json", b"[]"), ("model.safetensors", good[:-1] + b"?")):
        (result / name).write_bytes(content)
        saved = shutil.copytree(work_folder(out), tmp_path / "saved")
        told = call("tune", fused, out, *data, "--resume")
        assert told.exit_code == 0, told.output
        assert f"Warning: {result} is not what was written ({name} has other bytes): it is made again" in told.stderr
        assert (out / "model.safetensors").read_bytes() == good
        assert not {"complete", "stage.json"} & set(os.listdir(out))
        shutil.rmtree(out)
        saved.rename(work_folder(out))
    (work_folder(out) / "settings.json").write_text("[]")
    assert "must hold what was written" in refused("tune", fused, out, *data, "--resume")
