"""Pushing an export: private unless asked, once the folder is complete, refused before any work; without a network."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import call, refused
from huggingface_hub import HfApi, constants
from pico import pico_model

from mlpfusion.errors import InputError
from mlpfusion.export import hub
from mlpfusion.export.hub import check_push, push_folder
from mlpfusion.export.run import EXPORT_RECORD_FILE

NAME = "me/small"


@dataclass
class Hub:
    """What the Hub has: whether the repository is private, None without one; the names of its files."""

    private: bool | None = None
    error: Exception | None = None
    files: set[str] = field(default_factory=set)

    def create_repo(self, api: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert (repo_id, exist_ok) == (NAME, True)
        self.private = private if self.private is None else self.private

    def model_info(self, api: HfApi, repo_id: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, api: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        assert repo_id == NAME
        if self.error is not None:
            raise self.error
        self.files = {file.name for file in folder_path.iterdir()}


@pytest.fixture
def fake(monkeypatch) -> Hub:
    """A Hub at the boundary of `HfApi`, and a token for it."""
    found = Hub()
    for name in ("create_repo", "model_info", "upload_folder"):
        method = getattr(found, name)
        monkeypatch.setattr(HfApi, name, lambda api, *args, method=method, **named: method(api, *args, **named))
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    return found


@pytest.fixture
def cut(tmp_path) -> Path:
    pico_model("bert").save_pretrained(tmp_path / "model")
    assert call("compress", tmp_path / "model", tmp_path / "cut", "--width", 14).exit_code == 0
    return tmp_path / "cut"


@pytest.mark.slow
def test_a_complete_export_is_pushed_into_a_private_repository(cut, tmp_path, fake):
    done = call("export", cut, tmp_path / "out", "--push-to-hub", NAME)
    assert done.exit_code == 0, done.output
    assert f"Pushed to {NAME}." in done.stdout
    assert fake.private is True
    assert fake.files == {file.name for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", EXPORT_RECORD_FILE} <= fake.files


@pytest.mark.slow
def test_a_failed_upload_leaves_the_export_and_says_how_to_push_it(cut, tmp_path, fake):
    fake.error = ConnectionError("the cable\nis out")
    done = call("export", cut, tmp_path / "out", "--push-to-hub", NAME)
    assert done.exit_code == 3
    line = done.stderr.strip().splitlines()[-1]
    assert f"{tmp_path / 'out'} is complete, but not on the Hub (the cable is out)" in line
    assert f"by hand: hf upload {NAME} {tmp_path / 'out'} . --private" in line
    assert json.loads((tmp_path / "out" / EXPORT_RECORD_FILE).read_text())["to"] == "hf"


@pytest.mark.parametrize("is_public", [True, False])
def test_a_new_repository_is_as_asked(is_public, tmp_path, fake):
    push_folder(tmp_path, NAME, is_public=is_public)
    assert fake.private is not is_public


def test_what_is_there_and_public_is_not_pushed_into_unasked(tmp_path, fake):
    (tmp_path / "config.json").write_text("{}")
    fake.private = False
    with pytest.raises(ConnectionError, match="is there and public: --public uploads into it"):
        push_folder(tmp_path, NAME, is_public=False)
    assert fake.files == set()
    push_folder(tmp_path, NAME, is_public=True)
    assert fake.files == {"config.json"}


def test_a_refusal_of_the_hub_itself_is_told(tmp_path, fake, monkeypatch):
    monkeypatch.undo()  # the real client, at a port where nobody listens
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="hf_made_up"))
    with pytest.raises(ConnectionError, match=f"is complete, but not on the Hub .*hf upload {NAME} .* --no-private"):
        push_folder(tmp_path, NAME, is_public=True)


@pytest.mark.parametrize("name", ["small", "a/b/c", "me/", "me/a b", "me/..", ""])
def test_a_name_that_the_hub_cannot_have_is_refused_before_any_work(name, tmp_path, fake):
    line = refused("export", tmp_path / "nowhere", tmp_path / "out", "--push-to-hub", name)
    assert line.startswith("Error: `--push-to-hub` must be OWNER/NAME, got")


def test_without_a_token_or_offline_there_is_no_work(tmp_path, fake, monkeypatch):
    check_push(NAME, is_public=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="`push_to_hub` must be left out while HF_HUB_OFFLINE is set, got me/small"):
        check_push(NAME, is_public=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    line = refused("export", tmp_path / "nowhere", tmp_path / "out", "--push-to-hub", NAME)
    assert line == (
        "Error: `--push-to-hub` must find a token, by `hf auth login` or in HF_TOKEN, got none for me/small"
    )


def test_public_needs_a_repository(tmp_path):
    line = refused("export", tmp_path / "nowhere", tmp_path / "out", "--public")
    assert line == "Error: `--public` must be left out without `--push-to-hub`"
    check_push(None, is_public=False)
