"""Makes the labelled sentences of `mlpfusion demo`: whose sentence is it, of four authors in the public domain?

    python examples/four_authors.py BOOKS OUT

BOOKS is a text file (.gz is unpacked) of books as github.com/mlschmitt/classic-books-markdown writes them, one after
the other, divided by <|endoftext|>. OUT becomes one gzipped JSONL with the fields `split`, `author`, `book`,
`sentence`. Train and validation are from one book of an author, validation from the last fifth of it; test is from
another book. The same books give the same bytes.
"""

import gzip
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import click

from mlpfusion.data.files.lines import read_lines
from mlpfusion.errors import InputError

# Author -> the book to learn from, the book to be tested on. All were written in English.
BOOKS = {
    "Charles Dickens": ("David Copperfield", "Great Expectations"),
    "George MacDonald": ("Phantastes", "The Princess and the Goblin"),
    "James Fenimore Cooper": ("The Deerslayer", "The Spy"),
    "Mark Twain": ("The Adventures of Tom Sawyer", "The Prince and the Pauper"),
}
SIZES = {"train": 320, "validation": 100, "test": 200}  # sentences an author
WORDS = range(8, 41)
VALIDATION_SHARE = 0.2

_ABBREVIATIONS = "".join(
    rf"(?<!\b{name}\.)" for name in ("Mr", "Mrs", "Dr", "St", "Messrs", "Capt", "Col", "No", "[A-Z]")
)
_BOUNDARY = re.compile(rf"(?<=[.!?]){_ABBREVIATIONS}\s+(?=[A-Z\"])|(?<=[.!?]\"){_ABBREVIATIONS}\s+(?=[A-Z\"])")
_WHOLE = re.compile(r"\"?[A-Z][A-Za-z ,;:'\"!?().-]*[.!?]\"?")
_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "--"})


def read_books(path: Path) -> dict[str, list[str]]:
    """Title -> paragraphs, each one line of plain text; no headings, verses (several lines) and indented text.

    Raises `InputError` if the file cannot be read.
    """
    books = {}
    for text in "".join(read_lines(path, "books")).split("<|endoftext|>"):
        title = re.search(r"^# Title: (.+)$", text, re.MULTILINE)
        blocks = [block.strip("\n") for block in re.split(r"\n\s*\n", text)]
        if title:
            books[title[1].strip()] = [
                _plain(one) for one in blocks if re.match(r"[A-Z\"\u201c_]", one) and "\n" not in one
            ]
    return books


def sentences(paragraphs: list[str]) -> Iterator[str]:
    """Whole sentences of 8 to 40 words, in order, each of them once."""
    seen = set()
    for paragraph in paragraphs:
        for sentence in _BOUNDARY.split(paragraph):
            key = re.sub(r"[^a-z]+", " ", sentence.lower()).strip()
            balanced = sentence.count('"') % 2 == 0 and sentence.count("(") == sentence.count(")")
            if len(key.split()) in WORDS and len(sentence.split()) in WORDS and _WHOLE.fullmatch(sentence) and balanced:
                if key not in seen:
                    yield sentence
                seen.add(key)


def draw(books: dict[str, list[str]]) -> list[dict[str, str]]:
    """The rows of the set, by split and author. Raises `InputError` if a book is missing or too short."""
    rows, seen = [], set()
    for author, titles in BOOKS.items():
        missing = [title for title in titles if title not in books]
        if missing:
            raise InputError(f"`books` must hold {', '.join(missing)}")
        learned, tested = (list(sentences(books[title])) for title in titles)
        cut = round(len(learned) * (1 - VALIDATION_SHARE))
        pools = {
            "train": (titles[0], learned[:cut]),
            "validation": (titles[0], learned[cut:]),
            "test": (titles[1], tested),
        }
        for split, (title, pool) in pools.items():
            fresh = [sentence for sentence in pool if sentence not in seen]
            if len(fresh) < SIZES[split]:
                raise InputError(f"`books` must hold {SIZES[split]} sentences of {title} for {split}, got {len(fresh)}")
            drawn = random.Random(f"{author}, {split}").sample(fresh, SIZES[split])  # noqa: S311
            seen.update(drawn)
            rows += [{"split": split, "author": author, "book": title, "sentence": one} for one in drawn]
    return sorted(rows, key=lambda row: list(SIZES).index(row["split"]))


def _plain(paragraph: str) -> str:
    """The paragraph without emphasis, with straight quotes and single spaces; broken hyphens are joined."""
    text = re.sub(r"(?<!\w)_|_(?!\w)|\*", "", paragraph.translate(_PLAIN))
    return re.sub(r"(?<=\w)- (?=\w)", "-", re.sub(r"\s+", " ", re.sub(r"\s*-{2,}\s*", " -- ", text))).strip()


@click.command(help=__doc__)
@click.argument("books", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(books: Path, out: Path) -> None:
    try:
        rows = draw(read_books(books))
    except InputError as error:
        raise click.ClickException(str(error)) from error
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    out.write_bytes(packed.getvalue())
    click.echo(f"{len(rows)} sentences, {len(packed.getvalue()):,} bytes: {out}")


if __name__ == "__main__":
    main()
