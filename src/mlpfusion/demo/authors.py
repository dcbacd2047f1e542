"""The labelled sentences of the demo: whose sentence is it, of four authors? README.md says where they are from."""

import gzip
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

from mlpfusion.data.glue import CustomTask
from mlpfusion.data.load import TaskData, load_files
from mlpfusion.storage.output import check_output, staged_folder

SPLITS = ("train", "validation", "test")
TEXT, LABEL = "sentence", "author"
_COLUMNS = CustomTask((TEXT,), LABEL, name="four-authors")


def author_rows(split: str) -> list[dict[str, str]]:
    """The rows of a split: `author`, `book`, `sentence`."""
    packed = resources.files("mlpfusion.demo").joinpath("four_authors.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
    return [{name: row[name] for name in (TEXT, LABEL, "book")} for row in rows if row["split"] == split]


def write_authors(folder: Path) -> None:
    """Writes SPLIT.jsonl for every split, as one would keep data of one's own, and README.md. Replaces `folder`.

    Raises `InputError` if it holds anything else.
    """
    with staged_folder(folder, check_output(folder, overwrite=True)) as staged:
        for split in SPLITS:
            lines = [json.dumps(row) + "\n" for row in author_rows(split)]
            (staged / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        readme = resources.files("mlpfusion.demo").joinpath("README.md")
        (staged / "README.md").write_text(readme.read_text(encoding="utf-8"), encoding="utf-8")


def load_authors(folder: Path) -> TaskData:
    """The task in `folder`, read the way any data of one's own is; reported are `validation` and `test`."""
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    held_out, test = (load_files(files["train"], files[split], _COLUMNS) for split in SPLITS[1:])
    return replace(held_out, evaluation={**held_out.evaluation, "test": test.evaluation["validation"]})
