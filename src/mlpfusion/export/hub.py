"""Pushes a finished folder to the Hub of Hugging Face, into a private repository unless a public one is asked for."""

import shlex
from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError, HTTPError  # pyright: ignore[reportPrivateImportUsage]
from huggingface_hub.utils import validate_repo_id

from mlpfusion.errors import InputError, one_line, shown


def check_push(repository: str | None, *, is_public: bool) -> None:
    """Raises `InputError`, without a look at the network, for a name, a token or a setting that cannot work."""
    if repository is None:
        if is_public:
            raise InputError("`public` must be left out without `push_to_hub`")
        return
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"`push_to_hub` must be OWNER/NAME, got {shown(repository)}: {one_line(error)}") from error
    if repository.count("/") != 1:
        raise InputError(f"`push_to_hub` must be OWNER/NAME, got {shown(repository)}")
    if is_offline_mode():
        raise InputError(f"`push_to_hub` must be left out while HF_HUB_OFFLINE is set, got {repository}")
    if get_token() is None:
        raise InputError(
            f"`push_to_hub` must find a token, by `hf auth login` or in HF_TOKEN, got none for {repository}"
        )


def push_folder(folder: Path, repository: str, *, is_public: bool) -> None:
    """Uploads all files of `folder` in one commit; makes the repository if it is new.

    Raises `ConnectionError`, which says how to push the folder by hand, for anything that goes wrong, and before the
    upload where the repository is there, and public, and that was not asked for.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=not is_public, exist_ok=True)
        if not is_public and not api.model_info(repository).private:
            raise ConnectionError("the repository is there and public: --public uploads into it")
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of mlpfusion")
    except (HTTPError, OSError, ValueError) as error:
        privacy = "--no-private" if is_public else "--private"
        command = f"hf upload {repository} {shlex.quote(str(folder))} . {privacy}"
        reason = one_line(error, 120).rstrip(".")
        raise ConnectionError(f"{folder} is complete, but not on the Hub ({reason}); by hand: {command}") from error
