"""Scores of generated texts against their references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Any

from mlpfusion.data.generation.entries import GenerationExamples
from mlpfusion.errors import InputError
from mlpfusion.extras import GENERATION_SCORES
from mlpfusion.generation.edits import Edits, edit_rate, text_edits
from mlpfusion.generation.meteor import meteor, meteor_exact_stem
from mlpfusion.generation.protocol import NUM_REFERENCES, protocol_bleu

ALL = "ALL"


@dataclass(frozen=True)
class Signatures:
    """Tool and settings of each score: sacrebleu's own signatures, and lines like them."""

    bleu: str
    chrf: str
    ter: str
    rouge_l: str
    meteor: str
    bleu_protocol: str


@dataclass(frozen=True)
class GenerationScores:
    """Scores of the texts of one split or group.

    `bleu`, `chrf`, `ter` and `bleu_protocol` are percentages, `rouge_l` and the two METEORs lie
    between 0 and 1. Of `ter` less is better. `meteor` is None where WordNet is not installed.
    """

    num_texts: int
    bleu: float
    chrf: float
    ter: float
    rouge_l: float
    meteor_exact_stem: float
    meteor: float | None
    bleu_protocol: float
    signatures: Signatures


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> GenerationScores:
    """All scores of `texts`, each with at least one reference.

    Entries may have different numbers of references. An empty text is a text that matches
    nothing. Raises `InputError` without texts, with another number of references than texts, for
    an entry without references, and without the packages of the extra `generation`.

    >>> scores = score_texts(["The dog bit the man."], [["The dog bit the man.", "The dog had bit the man."]])
    >>> round(scores.bleu), round(scores.chrf), scores.ter, scores.rouge_l
    (100, 100, 0.0, 1.0)
    """
    _check(texts, references)
    return _scores(texts, references, text_edits(texts, references))


def score_groups(texts: Sequence[str], examples: GenerationExamples) -> Mapping[str, GenerationScores]:
    """Scores of all texts, and those of each group, by name.

    The name of all texts is `ALL`. Raises what `score_texts` raises, and `InputError` for a group
    of that name.

    >>> from mlpfusion.data.generation.entries import Entry
    >>> examples = GenerationExamples((Entry("a", ("A dog.",), "SEEN"), Entry("b", ("A cat.",), "UNSEEN")))
    >>> {group: scores.ter for group, scores in score_groups(["A dog.", "A dog."], examples).items()}
    {'ALL': 25.0, 'SEEN': 0.0, 'UNSEEN': 50.0}
    """
    _check(texts, examples.references)
    if ALL in examples.groups:
        raise InputError(f"`group` must not be {ALL}, the name of the scores of all texts, got it as one of a part")
    edits = text_edits(texts, examples.references)
    scores = {ALL: _scores(texts, examples.references, edits)}
    for group in examples.groups:
        chosen = [index for index, entry in enumerate(examples.entries) if entry.group == group]
        references = examples.subset(chosen).references
        scores[group] = _scores([texts[index] for index in chosen], references, [edits[index] for index in chosen])
    return scores


def rouge_l(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """F of ROUGE-L without stemming, between 0 and 1.

    Of an entry's references the best counts, and the result is the mean over entries. rouge-score
    reads runs of a-z and 0-9 alone, so texts in other scripts score 0. Raises `InputError` without
    the packages of the extra `generation`.

    >>> rouge_l(["the dog sat"], [["a cat", "the dog there sat"]])  # 3 of 3 and 3 of 4 words: 2 * 3 / 7
    0.857...
    """
    GENERATION_SCORES.check()
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    return fmean(float(scorer.score_multi(refs, text)["rougeL"].fmeasure) for text, refs in pairs)


def _scores(texts: Sequence[str], references: Sequence[Sequence[str]], edits: Sequence[Edits]) -> GenerationScores:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    # sacrebleu takes the first references of all texts, then the second ones; None is none, whatever its types say.
    width = max(map(len, references))
    streams: Any = [[refs[index] if index < len(refs) else None for refs in references] for index in range(width)]
    # force: no remark on standard error about texts that look tokenised.
    bleu, chrf = BLEU(force=True), CHRF()
    return GenerationScores(
        num_texts=len(texts),
        bleu=bleu.corpus_score(texts, streams).score,
        chrf=chrf.corpus_score(texts, streams).score,
        ter=edit_rate(edits),
        rouge_l=rouge_l(texts, references),
        meteor_exact_stem=meteor_exact_stem(texts, references),
        meteor=meteor(texts, references),
        bleu_protocol=protocol_bleu(texts, references),
        signatures=Signatures(
            bleu=str(bleu.get_signature()),
            chrf=str(chrf.get_signature()),
            ter=str(TER(references=streams).get_signature()),
            rouge_l=f"measure:F|refs:best|stem:no|version:rouge-score {version('rouge-score')}",
            meteor=f"refs:best|words:protocol|stem:porter|version:nltk {version('nltk')}",
            bleu_protocol=f"nrefs:{NUM_REFERENCES}|words:protocol|smooth:none|version:sacrebleu {version('sacrebleu')}",
        ),
    )


def _check(texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not texts:
        raise InputError("`texts` must hold at least one generated text, got none")
    if len(texts) != len(references):
        raise InputError(f"`texts` must be as many as the entries, {len(references)}, got {len(texts)}")
    for index, refs in enumerate(references):
        if not refs:
            raise InputError(f"`references` must hold at least one text for every entry, got none for entry {index}")
