"""WebNLG 2017: triples written as one line of text, and the texts that say them.

The line is that of the paper's code: special tokens right beside the pieces of the triples, no space between, nothing
in the pieces changed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpfusion.data.files.row import Row
from mlpfusion.data.files.rows import Table, check_not_empty, column_value, read_table
from mlpfusion.data.generation.checked import text_value
from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.errors import InputError, shown

SPLITS = ("train", "validation", "test")
SEEN, UNSEEN = "SEEN", "UNSEEN"
BOS, EOS, TARGET, PAD = "<bos_webnlg>", "<eos_webnlg>", "<target_webnlg>", "<pad>"
SUBJECT, PROPERTY, OBJECT = "<subject>", "<property>", "<object>"
# Generation stops at any of them.
TASK_TOKENS = (BOS, EOS, SUBJECT, PROPERTY, OBJECT, TARGET)
SEGMENT_TOKENS = (BOS, SUBJECT, PROPERTY, OBJECT, TARGET)  # a segment begins with its token
# The paper's code adds these for its two other tasks. No text here has them, but their rows are in the softmax.
_UNUSED = ("<bos_qa>", "<eos_qa>", "<question>", "<answer>", "<document>")
_UNUSED += ("<bos_sm>", "<eos_sm>", "<source_sm>", "<target_sm>")
# All that is added to the vocabulary, in the order of the ids; the first one is 50257 in GPT-2.
ADDED_TOKENS = (PAD, *_UNUSED, *TASK_TOKENS)


@dataclass(frozen=True)
class Triple:
    """One fact, its parts as they stand in the file."""

    subject: str
    property: str
    object: str


@dataclass(frozen=True)
class Segment:
    """A part of the line, and the special token of its kind.

    The id of `kind` is the token type of every token of `text`.
    """

    kind: str
    text: str


def source_segments(triples: Iterable[Triple]) -> tuple[Segment, ...]:
    """Segments of the source of an entry, in order.

    The joined texts are the source; generation begins after them.

    >>> "".join(segment.text for segment in source_segments([Triple("Aarhus", "leaderName", "Jacob_Bundsgaard")]))
    '<bos_webnlg><subject>Aarhus<property>leaderName<object>Jacob_Bundsgaard<target_webnlg>'
    """
    segments = [Segment(BOS, BOS)]
    for triple in triples:
        segments.append(Segment(SUBJECT, SUBJECT + triple.subject))
        segments.append(Segment(PROPERTY, PROPERTY + triple.property))
        segments.append(Segment(OBJECT, OBJECT + triple.object))
    return (*segments, Segment(TARGET, TARGET))


def target_segment(reference: str) -> Segment:
    """Segment of a text to learn, with the token of its end.

    Follows `source_segments` in training; the loss is that of the tokens of this segment alone.

    >>> target_segment("Aarhus is led by Jacob Bundsgaard.")
    Segment(kind='<target_webnlg>', text='Aarhus is led by Jacob Bundsgaard.<eos_webnlg>')
    """
    return Segment(TARGET, reference + EOS)


def linearised(triples: Iterable[Triple]) -> str:
    """Line of text for triples, from `<bos_webnlg>` to `<target_webnlg>`.

    >>> linearised([Triple("Aarhus", "leaderName", "Jacob_Bundsgaard")])
    '<bos_webnlg><subject>Aarhus<property>leaderName<object>Jacob_Bundsgaard<target_webnlg>'
    """
    return "".join(segment.text for segment in source_segments(triples))


@dataclass(frozen=True)
class Facts:
    """One row of WebNLG: its triples, and its references with the comment `good`."""

    triples: tuple[Triple, ...]
    references: tuple[str, ...]
    category: str
    seen: bool


def read_facts(folder: Path, split: str) -> tuple[Facts, ...]:
    """Reads `split` of WebNLG from a folder with `train.jsonl.gz` and the others.

    Rows without a `good` reference are left out: 5 of train, 1 of validation. Raises `InputError`
    for an unknown split, and a file that is missing, empty or of another form.
    """
    if split not in SPLITS:
        raise InputError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}")
    table = read_table(folder / f"{split}.jsonl.gz", split)
    check_not_empty(table, split)
    return tuple(facts for row in table.rows if (facts := _facts(table, row)).references)


def read_webnlg(folder: Path, split: str) -> GenerationExamples:
    """Entries of `split` of WebNLG: lines of triples with all `good` references.

    Entries of the test split belong to the group `SEEN` or `UNSEEN`, by their category. References
    are the bare texts, `target_segment` adds the token of the end. Raises what `read_facts` raises.
    """
    entries = []
    for facts in read_facts(folder, split):
        group = (SEEN if facts.seen else UNSEEN) if split == "test" else None
        entries.append(Entry(linearised(facts.triples), facts.references, group))
    return GenerationExamples(tuple(entries))


def _facts(table: Table, row: Row) -> Facts:
    triples = column_value(table, row, "triples", "triples")
    references = column_value(table, row, "references", "references")
    comments = column_value(table, row, "comments", "comments")
    seen = column_value(table, row, "seen", "seen")
    if not isinstance(triples, list) or not triples:
        raise InputError(f"`triples` must be a list of triples in {table.place(row)}, got {shown(triples)}")
    if not isinstance(references, list) or not isinstance(comments, list) or len(references) != len(comments):
        given = f"got {shown(references)} and {shown(comments)}"
        raise InputError(f"`references` and `comments` must be lists of one length in {table.place(row)}, {given}")
    if not isinstance(seen, bool):
        raise InputError(f"`seen` must be true or false in {table.place(row)}, got {shown(seen)}")
    good = [text for text, comment in zip(references, comments, strict=True) if comment == "good"]
    return Facts(
        tuple(_triple(table, row, triple) for triple in triples),
        tuple(text_value(table, row, text, "references") for text in good),
        text_value(table, row, column_value(table, row, "category", "category"), "category"),
        seen,
    )


def _triple(table: Table, row: Row, value: Any) -> Triple:
    if not isinstance(value, list) or len(value) != 3:
        raise InputError(f"`triples` must hold [subject, property, object] in {table.place(row)}, got {shown(value)}")
    subject, name, thing = (text_value(table, row, part, "triples") for part in value)
    return Triple(subject, name, thing)
