"""Words and BLEU of the evaluation used by the paper for WebNLG: the scripts of 2017, as kept by the DART authors."""

import re
from collections.abc import Sequence

from mlpfusion.extras import GENERATION_SCORES

NUM_REFERENCES = 3  # the scripts read the first three references of an entry
_BREAK = re.compile(r"(\W)")


def protocol_words(text: str) -> list[str]:
    """Splits a generated text into the protocol's words.

    Words are ASCII in small letters; a sign other than letters, digits and `_` is a word.

    >>> protocol_words("Adolfo Su\\u00e1rez airport, 18L/36R.")
    ['adolfo', 'suarez', 'airport', ',', '18l', '/', '36r', '.']
    """
    from unidecode import unidecode

    return " ".join(_BREAK.split(unidecode(unidecode(text.strip()).lower()))).split()


def protocol_reference_words(text: str) -> list[str]:
    """Splits a reference text into the protocol's words.

    The scripts make references ASCII after the split, generated texts before. So a sign with
    several ASCII signs in its place, as one half with 1/2, stays one word here.

    >>> protocol_reference_words("Su\\u00e1rez ate \\u00bd."), protocol_words("Su\\u00e1rez ate \\u00bd.")
    (['suarez', 'ate', '1/2', '.'], ['suarez', 'ate', '1', '/', '2', '.'])
    """
    from unidecode import unidecode

    # A letter may become capitals once more, as the trade mark does; the BLEU script makes them small.
    return unidecode(" ".join(" ".join(_BREAK.split(text)).split()).lower()).lower().split()


def protocol_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of multi-bleu.perl on the protocol's words, in percent.

    Counts the first three references of every entry. A missing one counts as an empty text: so the
    script has it, and so a text of less than half the words of its references, where these are
    fewer than three, costs no brevity. Raises `InputError` without the packages of the extra
    `generation`.

    >>> protocol_bleu(["The dog bit the man."], [["the dog bit the man ."]])
    100.0
    """
    GENERATION_SCORES.check()
    from sacrebleu.metrics.bleu import BLEU

    words = [" ".join(protocol_words(text)) for text in texts]
    streams = [
        [" ".join(protocol_reference_words(refs[index])) if index < len(refs) else "" for refs in references]
        for index in range(NUM_REFERENCES)
    ]
    bleu = BLEU(tokenize="none", smooth_method="none", force=True)
    return min(bleu.corpus_score(words, streams).score, 100.0)  # exp(log(100)) rounds to 100.00000000000004
