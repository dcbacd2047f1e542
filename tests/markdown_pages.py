"""What the Markdown pages hold: fenced blocks with what is said of them, headings, links, commands in the text.

A comment above a block says how the tests treat it: `<!-- not run: REASON -->` or `<!-- file: NAME -->`.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DOCUMENTATION = [page for page in PAGES if page == ROOT / "README.md" or ROOT / "docs" in page.parents]


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text without the indentation of the fence, the comment above it."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def is_run(self) -> bool:
        return not self.comment.startswith("not run:")

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    found, lines, comment = [], page.read_text(encoding="utf-8").splitlines(), ""
    number = 0
    while number < len(lines):
        opened = re.fullmatch(r"( *)```(\w*)", lines[number])
        if opened:
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
            text = "\n".join(line.removeprefix(opened[1]) for line in lines[number + 1 : end])
            found.append(Block(page, number + 1, opened[2], text, comment))
            number = end
        noted = re.fullmatch(r" *<!-- (.*) -->", lines[number])
        comment = noted[1] if noted else ""
        number += 1
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^ *```\w*$.*?^ *```$", "", page.read_text(encoding="utf-8"))


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block as words, continued lines joined, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


def commands_in_text(page: Path) -> Iterator[list[str]]:
    """Commands in backticks outside of blocks, as words."""
    for code in re.findall(r"`(mlpfusion [^`]+)`", prose(page)):
        yield shlex.split(" ".join(code.split()))


def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of every heading, without markup."""
    found = re.findall(r"(?m)^(#+) (.+)$", prose(page))
    return [(len(marks), re.sub(r"[`*]", "", text).strip()) for marks, text in found]


def anchor_of(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor_of(text) for _, text in headings(page)}


def links(page: Path) -> list[str]:
    """The targets of links and images. A target in a code span is none."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)
