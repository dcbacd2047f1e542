"""Texts to generate: sources with their reference texts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Pair:
    """One source and one of its reference texts, to learn."""

    source: str
    reference: str


@dataclass(frozen=True)
class Entry:
    """One source and all its reference texts, at least one.

    `group` names a part of the evaluation with scores of its own, beside the whole; None for no part.
    """

    source: str
    references: tuple[str, ...]
    group: str | None = None


@dataclass(frozen=True)
class GenerationExamples:
    """The entries of one split, in the order of the file."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def references(self) -> tuple[tuple[str, ...], ...]:
        """References of every entry, for the scores."""
        return tuple(entry.references for entry in self.entries)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in the order of their first entries.

        >>> GenerationExamples((Entry("a", ("A",), "SEEN"), Entry("b", ("B",)))).groups
        ('SEEN',)
        """
        return tuple(dict.fromkeys(entry.group for entry in self.entries if entry.group is not None))

    def pairs(self) -> tuple[Pair, ...]:
        """Training examples: every reference of every entry beside its source.

        >>> GenerationExamples((Entry("a", ("A", "AA")),)).pairs()
        (Pair(source='a', reference='A'), Pair(source='a', reference='AA'))
        """
        return tuple(Pair(entry.source, reference) for entry in self.entries for reference in entry.references)

    def subset(self, indices: Sequence[int]) -> "GenerationExamples":
        """Picks the entries at `indices`, in their order."""
        return GenerationExamples(tuple(self.entries[index] for index in indices))


def merged(entries: Iterable[Entry]) -> GenerationExamples:
    """Joins neighbouring entries of one source and one group.

    The joined entry has all their references. Equal sources with other entries between stay apart.

    >>> merged([Entry("a", ("A",)), Entry("a", ("AA",)), Entry("b", ("B",))]).references
    (('A', 'AA'), ('B',))
    """
    joined = []
    for (source, group), same in groupby(entries, key=lambda entry: (entry.source, entry.group)):
        joined.append(Entry(source, tuple(reference for entry in same for reference in entry.references), group))
    return GenerationExamples(tuple(joined))
