"""The task of the demo: sentences labelled by author, one of four. Sources are in README.md."""

import gzip
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

from mlpfusion.data.labelled.glue import CustomTask
from mlpfusion.data.labelled.load import LabelledData, load_files
from mlpfusion.storage.output import check_output, staged_folder

SPLITS = ("train", "validation", "test")
TEXT, LABEL = "sentence", "author"
_COLUMNS = CustomTask((TEXT,), LABEL, name="four-authors")


def author_rows(split: str) -> list[dict[str, str]]:
    """Rows of a split: `sentence`, `author`, `book`.

    >>> sorted({row["author"] for row in author_rows("test")})[0]
    'Charles Dickens'
    """
    packed = resources.files("mlpfusion.demo").joinpath("four_authors.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return [{name: row[name] for name in (TEXT, LABEL, "book")} for row in rows if row["split"] == split]


def write_authors(folder: Path) -> None:
    """Writes SPLIT.jsonl for every split and README.md, in place of an older `folder`.

    Raises `InputError` if `folder` holds anything else.
    """
    with staged_folder(folder, check_output(folder, overwrite=True)) as staged:
        for split in SPLITS:
            lines = [json.dumps(row) + "\n" for row in author_rows(split)]
            (staged / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        readme = resources.files("mlpfusion.demo").joinpath("README.md")
        (staged / "README.md").write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")


def load_authors(folder: Path) -> LabelledData:
    """Loads the task from `folder`, like data of your own.

    Reported are `validation` and `test`.
    """
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    held_out, test = (load_files(files["train"], files[split], _COLUMNS) for split in SPLITS[1:])
    return replace(held_out, evaluation={**held_out.evaluation, "test": test.evaluation["validation"]})
