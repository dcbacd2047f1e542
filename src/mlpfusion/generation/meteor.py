"""METEOR by nltk: the whole of it where WordNet is installed, its exact-and-stem part everywhere.

Neither is METEOR 1.5, the Java program behind most published numbers: that has paraphrases and weights of its own, and
looks for the fewest chunks, where nltk joins equal words from the end of the texts on.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mlpfusion.extras import GENERATION_SCORES
from mlpfusion.generation.protocol import protocol_reference_words, protocol_words


class _NoSynonyms:
    """Stands for WordNet where only equal words and equal stems shall match."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def installed_wordnet() -> Any | None:
    """WordNet of nltk; None where `python -m nltk.downloader wordnet` was not run."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def meteor_exact_stem(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR without synonyms, between 0 and 1.

    Words are those of the protocol, and match by their letters or by their Porter stems. Of an
    entry's references the best counts, and the result is the mean over entries. Raises
    `InputError` without the packages of the extra `generation`.

    >>> round(meteor_exact_stem(["the dogs bark"], [["the dog barks"]]), 4)  # one chunk of three: 1 - 0.5 / 3**3
    0.9815
    """
    return _meteor(texts, references, _NoSynonyms())


def meteor(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """METEOR with WordNet's synonyms, between 0 and 1; None where WordNet is not installed.

    Otherwise as `meteor_exact_stem`. nltk looks synonyms up for the stems of words: those of a
    word that is not its own stem, as `airplane`, are not found.
    """
    GENERATION_SCORES.check()
    synonyms = installed_wordnet()
    return None if synonyms is None else _meteor(texts, references, synonyms)


def _meteor(texts: Sequence[str], references: Sequence[Sequence[str]], synonyms: Any) -> float:
    GENERATION_SCORES.check()
    from nltk.translate.meteor_score import meteor_score

    return fmean(
        meteor_score([protocol_reference_words(ref) for ref in refs], protocol_words(text), wordnet=synonyms)
        for text, refs in zip(texts, references, strict=True)
    )
