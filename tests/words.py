"""Counts how the package reads: words of docstrings, comments, untyped calls and lengths, by room and in total.

    python tests/words.py [SOURCE]     # default: src/mlpfusion; any folder of Python files will do

For judging a change of words, not a test: a number that gets better while a reader is served worse is no gain. Medians
of ten code bases of other authors stand under the table. `rel` and `pron` count words by form (a `that` may be a
conjunction), `verb` looks the first word up in a list: good for comparing, no more.
"""

import ast
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

RELATIVES = {"that", "which", "whose", "what", "who", "whom"}
PRONOUNS = set(re.findall(r"\S+", """it its they them their this these those one ones he she we you"""))
# First words that are verbs; each also counts with -s or -es.
VERBS = set(
    re.findall(
        r"\S+",
        """add align allocate apply append arrange ask bring build call catch change check choose close cluster collect
    combine compare compress compute concatenate convert copy count cover create cut declare decode digest divide
    download draw drop encode estimate evaluate exchange expand fill find fine-tune fit flatten follow fold gather
    generate get give go group guess hand hash hide hold initialise initialize insert install iterate join keep know
    label learn leave let list load lock look lower make map mark mask match measure merge move multiply name note
    number open order pack pad parse pass pick place plan plot predict prepare print prune push put raise read rebuild
    record reduce refine refit refuse release remove rename render repeat replace report reset resolve restore return
    run sample save scale scan score seal search see seed select send set show shuffle solve sort split stack start stop
    store sum swap sweep take tell test time train transform translate truncate try turn undo unite update use validate
    wait walk warn watch weigh weight write yield zero""",
    )
)
ANCHORS = (
    "anchors' medians: para 10, rel 1.2, pron 2.5, verb 42-50 %, comments 60-75, f(**x) 4.6, getattr 1.3, >100 0 %"
)
COLUMNS = re.findall(
    r"\S+", "room lines func doc% para rel pron verb% ex% com/k f**/k get/k >100% fun50 fun90 funmax filemax"
)


@dataclass
class Counts:
    """What was counted in some files."""

    num_lines: int = 0
    num_comments: int = 0
    num_long_lines: int = 0
    num_unpackings: int = 0
    num_getattrs: int = 0
    docstrings: list[str] = field(default_factory=list)
    num_definitions: int = 0
    num_documented: int = 0
    function_lengths: list[int] = field(default_factory=list)
    file_lengths: list[int] = field(default_factory=list)

    def add_file(self, path: Path) -> None:
        """Counts one file."""
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        self.num_lines += len(lines)
        self.file_lengths.append(len(lines))
        self.num_long_lines += sum(len(line) > 100 for line in lines)
        with path.open("rb") as opened:
            self.num_comments += sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(opened.readline))
        for node in ast.walk(ast.parse(text)):
            self._add_node(node)

    def _add_node(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            self.num_unpackings += any(keyword.arg is None for keyword in node.keywords)
            is_getattr = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "setattr", "hasattr")
            self.num_getattrs += is_getattr and not isinstance(node.args[1], ast.Constant)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            is_public = not node.name.startswith("_")
            self.num_definitions += is_public
            self.num_documented += is_public and docstring is not None
            if docstring:
                self.docstrings.append(docstring)
            if not isinstance(node, ast.ClassDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                head = node.body[0]
                self.function_lengths.append(length - ((head.end_lineno or 0) - head.lineno + 1 if docstring else 0))

    def row(self) -> list[str]:
        """The numbers below `COLUMNS`, without the room."""
        words = [_words(text) for text in self.docstrings]
        first = [_words(text.split("\n\n")[0]) for text in self.docstrings]
        openers = [paragraph[0] for paragraph in first if paragraph]
        return [
            f"{self.num_lines}",
            f"{len(self.function_lengths)}",
            _per(100, self.num_documented, self.num_definitions),
            f"{statistics.median([len(paragraph) for paragraph in first] or [0]):.0f}",
            _per(100, sum(_share(text, RELATIVES) for text in words), sum(map(len, words)), 1),
            _per(100, sum(_share(text, PRONOUNS) for text in words), sum(map(len, words)), 1),
            _per(100, sum(map(_is_verb, openers)), len(openers)),
            _per(100, sum(">>>" in text for text in self.docstrings), len(self.docstrings)),
            _per(1000, self.num_comments, self.num_lines),
            _per(1000, self.num_unpackings, self.num_lines, 1),
            _per(1000, self.num_getattrs, self.num_lines, 1),
            _per(100, self.num_long_lines, self.num_lines),
            *_quantiles(self.function_lengths),
            f"{max(self.file_lengths)}",
        ]


def _words(text: str) -> list[str]:
    """The words of a docstring in lower case, without its examples and its code in backticks."""
    prose = re.sub(r"^\s*(>>>|\.\.\. ).*$", "", text, flags=re.MULTILINE)
    return re.findall(r"[a-z]+(?:[-'][a-z]+)*", re.sub(r"`[^`]*`", " CODE ", prose).lower())


def _share(words: Iterable[str], which: set[str]) -> int:
    return sum(word in which for word in words)


def _is_verb(word: str) -> bool:
    return any(form in VERBS for form in (word, word.removesuffix("s"), word.removesuffix("es")))


def _per(unit: int, number: int, of: int, digits: int = 0) -> str:
    return f"{unit * number / of:.{digits}f}" if of else "-"


def _quantiles(lengths: list[int]) -> list[str]:
    """Median, 90 % quantile and maximum."""
    ordered = sorted(lengths) or [0]
    return [f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]}" for share in (0.5, 0.9, 1.0)]


def rooms(source: Path) -> dict[str, Counts]:
    """The counts by first folder, or by file for modules at the root, then those of all files."""
    counts: dict[str, Counts] = {}
    for path in sorted(source.rglob("*.py")):
        if not path.read_text(encoding="utf-8").strip():
            continue
        for room in (path.relative_to(source).parts[0], "TOTAL"):
            counts.setdefault(room, Counts()).add_file(path)
    return dict(sorted(counts.items(), key=lambda item: item[0] == "TOTAL"))


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src" / "mlpfusion"
    rows = [COLUMNS] + [[room, *counts.row()] for room, counts in rooms(source).items()]
    for row in rows:
        print(f"{row[0]:20}" + "".join(f"{cell:>8}" for cell in row[1:]))
    print(ANCHORS)


if __name__ == "__main__":
    main()
