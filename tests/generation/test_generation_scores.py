import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from mlpfusion.data.generation.entries import Entry, GenerationExamples
from mlpfusion.errors import InputError
from mlpfusion.extras import GENERATION_SCORES
from mlpfusion.generation import meteor as meteors
from mlpfusion.generation.edits import Edits, edit_rate
from mlpfusion.generation.meteor import meteor, meteor_exact_stem
from mlpfusion.generation.protocol import protocol_bleu, protocol_reference_words, protocol_words
from mlpfusion.generation.scores import rouge_l, score_groups, score_texts

# The example of sacrebleu's README, section "Python API": BLEU 48.53, chrF2 59.73; section "Variable Number of
# References", where the first text has the second reference alone: BLEU 29.44.
DOGS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]

# Some texts as models write them: equal, shortened, repeated, without spaces before signs, in capitals, and none.
TEXTS = [
    "Aarhus Airport serves the city of Aarhus, Denmark.",
    "Bean was born in Wheeler Texas",
    "",
    "The dish is from Italy, Italy, Italy; it costs \u20ac18/36.",
    'ADOLFO SU\u00c1REZ "Madrid\u2013Barajas" Airport is in Madrid (Spain).',
]
REFERENCES = [
    ["Aarhus Airport serves the city of Aarhus, Denmark.", "The airport of Aarhus is Aarhus Airport.", "It is Aarhus."],
    [
        "Alan Bean was born in Wheeler, Texas.",
        "Wheeler, Texas is where Alan Bean was born.",
        "Bean comes from Wheeler.",
    ],
    ["Bakso is a dish.", "Bakso is food from Indonesia.", "A dish: Bakso."],
    ["The dish, which costs \u20ac18/36, is Italian.", "Italy has this dish.", "From Italy comes the dish."],
    [
        "Adolfo Su\u00e1rez Madrid\u2013Barajas Airport can be found in Madrid.",
        "Adolfo Suarez Madrid-Barajas airport is located at Madrid, Spain.",
        "In Madrid is the airport.",
    ],
]


def test_sacrebleus_command_line_gives_the_same_to_the_last_digit(tmp_path):
    (tmp_path / "texts").write_text("".join(text + "\n" for text in TEXTS), encoding="utf-8")
    files = [str(tmp_path / f"references{index}") for index in range(3)]
    for index, file in enumerate(files):
        Path(file).write_text("".join(refs[index] + "\n" for refs in REFERENCES), encoding="utf-8")
    program = [sys.executable, "-m", "sacrebleu", *files, "-i", str(tmp_path / "texts")]
    command = [*program, "-m", "bleu", "chrf", "ter", "--width", "15", "--format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    bleu, chrf, ter = json.loads(done.stdout)
    scores = score_texts(TEXTS, REFERENCES)
    ours = [f"{score:.15f}" for score in (scores.bleu, scores.chrf, scores.ter)]
    assert [float(score) for score in ours] == [result["score"] for result in (bleu, chrf, ter)]
    signatures = (scores.signatures.bleu, scores.signatures.chrf, scores.signatures.ter)
    assert signatures == (bleu["signature"], chrf["signature"], ter["signature"])
    assert 0 < scores.bleu < scores.chrf < 100


def test_the_published_example_of_sacrebleu():
    scores = score_texts(DOGS, DOG_REFERENCES)
    assert (round(scores.bleu, 2), round(scores.chrf, 2)) == (48.53, 59.73)
    assert scores.signatures.bleu.startswith("nrefs:2|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")


def test_the_published_example_with_unequal_numbers_of_references():
    scores = score_texts(DOGS, [DOG_REFERENCES[0][1:], *DOG_REFERENCES[1:]])
    assert round(scores.bleu, 2) == 29.44
    assert scores.signatures.bleu.startswith("nrefs:var|")
    assert scores.signatures.ter.startswith("nrefs:var|")


def test_references_without_words_cost_all_or_nothing():
    assert edit_rate([Edits(0, 0.0)]) == 0
    assert edit_rate([Edits(3, 0.0)]) == 100


def test_a_missing_reference_counts_in_no_score_of_sacrebleu():
    """TER divides by the mean length of an entry's references: 2 edits of 5 words, then of 4.5 words, in mind."""
    assert score_texts(["a b c x y"], [["a b c d e"]]).ter == pytest.approx(100 * 2 / 5)
    assert score_texts(["a b c x y"], [["a b c d e", "a b c d"]]).ter == pytest.approx(100 * 2 / 4.5)
    both = score_texts(["a b c x y", "m n"], [["a b c d e", "a b c d"], ["m n"]])
    assert both.ter == pytest.approx(100 * 2 / 6.5)


# Banerjee and Lavie 2005: F = 10PR / (R + 9P), less half of it times (chunks / matches) ** 3. All words match. In the
# first text nltk joins `the` to the other `the`, and so counts six chunks where METEOR 1.5 looks for the fewest, three.
@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("on the mat sat the cat", 1 - 0.5),
        ("the cat sat on the mat", 1 - 0.5 / 6**3),
        ("the cat was sat on the mat", (10 * 6 / 7) / (1 + 9 * 6 / 7) * (1 - 0.5 / 3**3)),
    ],
)
def test_meteor_of_words_in_another_order(text, score):
    assert meteor_exact_stem([text], [["the cat sat on the mat"]]) == pytest.approx(score)


def test_meteor_by_hand():
    # dog = dog and run(s) = run(ning): 2 of 3 and 2 of 5 words, two chunks. F = 10PR / (R + 9P) = 5/12, penalty 0.5.
    text, reference = "a dog runs", "the dog was running fast"
    assert meteor_exact_stem([text], [[reference]]) == pytest.approx(5 / 24)
    # The better reference counts, and the mean over texts.
    assert meteor_exact_stem([text], [[reference, "A dog runs"]]) == pytest.approx(1 - 0.5 / 27)
    assert meteor_exact_stem([text, "no"], [[reference], ["yes"]]) == pytest.approx(5 / 48)


class Lexicon:
    """Stands for WordNet: a car is an auto."""

    def synsets(self, word: str) -> list["Lexicon"]:
        return [self] if word == "car" else []

    def lemmas(self) -> list["Lexicon"]:
        return [self]

    def name(self) -> str:
        return "auto"


def test_meteor_has_synonyms_where_wordnet_is(monkeypatch):
    monkeypatch.setattr(meteors, "installed_wordnet", Lexicon)
    # One word, one chunk: 1 - 0.5.
    assert meteor(["Car"], [["auto"]]) == pytest.approx(0.5)
    assert meteor_exact_stem(["Car"], [["auto"]]) == 0
    monkeypatch.setattr(meteors, "installed_wordnet", lambda: None)
    scores = score_texts(["Car"], [["car"]])
    assert (scores.meteor, scores.meteor_exact_stem) == (None, 0.5)


# Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, its example of sentence-level ROUGE-L, beta = 1.
@pytest.mark.parametrize(
    ("text", "score"),
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 1 / 2), ("the gunman police killed", 1 / 2)],
)
def test_published_examples_of_rouge_l(text, score):
    assert rouge_l([text], [["police killed the gunman"]]) == pytest.approx(score)


def test_rouge_l_by_hand():
    # the .. sat of three and of five words: 2 * 2 / 8; the better reference: 3 of 3 and 3 of 4: 6/7.
    assert rouge_l(["the dog sat"], [["the old cat there sat"]]) == pytest.approx(1 / 2)
    assert rouge_l(["the dog sat"], [["the old cat there sat", "the dog there sat"]]) == pytest.approx(6 / 7)
    assert rouge_l(["the dog sat", "a"], [["the old cat there sat"], ["b", "c"]]) == pytest.approx(1 / 4)


def test_words_of_the_protocol():
    reference = "Adolfo Su\u00e1rez Madrid\u2013Barajas Airport's runway, 18L/36R; temp_1  \u201chot\u201d."
    words = 'adolfo suarez madrid - barajas airport \' s runway , 18l / 36r ; temp_1 " hot " .'
    assert " ".join(protocol_reference_words(reference)) == words
    assert " ".join(protocol_words(reference)) == words
    assert protocol_words(" \n") == []


def test_bleu_of_the_protocol_by_hand():
    # 4/5 * 3/4 * 2/3 * 1/2 = 1/5. No smoothing: without a common run of four words it is 0.
    assert protocol_bleu(["A b, c d"], [["a b, c e"]]) == pytest.approx(100 * (1 / 5) ** 0.25)
    assert protocol_bleu(["a b c x d"], [["a b c y d"]]) == 0


def test_bleu_of_the_protocol_has_three_references_of_an_entry():
    others = ["e f g h"] * 3
    assert protocol_bleu(["a b c d"], [[*others[:2], "a b c d"]]) == 100
    assert protocol_bleu(["a b c d"], [[*others, "a b c d"]]) == 0
    # Brevity exp(1 - 10/4); with fewer than three references the script's empty line is nearer in length.
    ten = "a b c d e f g h i j"
    assert protocol_bleu(["a b c d"], [[ten] * 3]) == pytest.approx(100 * math.exp(-1.5))
    assert protocol_bleu(["a b c d"], [[ten] * 2]) == 100


def test_empty_texts_score_nothing():
    scores = score_texts(["", " \n"], [["Bakso is a dish."], ["Celery.", "It is celery."]])
    assert (scores.bleu, scores.chrf, scores.rouge_l, scores.meteor_exact_stem, scores.bleu_protocol) == (0, 0, 0, 0, 0)
    assert scores.ter == pytest.approx(100 * (4 + 1) / (4 + 2))  # words of the shortest reference, by the mean length
    assert scores.num_texts == 2


def test_groups_are_scored_beside_the_whole():
    entries = [Entry(str(index), tuple(refs)) for index, refs in enumerate(DOG_REFERENCES[:1])]
    entries += [Entry("b", tuple(DOG_REFERENCES[1]), "SEEN"), Entry("c", tuple(DOG_REFERENCES[2]), "UNSEEN")]
    scores = score_groups(DOGS, GenerationExamples(tuple(entries)))
    assert list(scores) == ["ALL", "SEEN", "UNSEEN"]
    assert scores["ALL"] == score_texts(DOGS, DOG_REFERENCES)
    assert scores["UNSEEN"] == score_texts(DOGS[2:], DOG_REFERENCES[2:])


def test_no_group_may_have_the_name_of_the_whole():
    with pytest.raises(InputError, match="`group` must not be ALL, the name of the scores of all texts"):
        score_groups(["a"], GenerationExamples((Entry("a", ("a",), "ALL"),)))


@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        ([], [], "`texts` must hold at least one generated text, got none"),
        (["a"], [["a"], ["b"]], "`texts` must be as many as the entries, 2, got 1"),
        (["a", "b"], [["a"], []], "`references` must hold at least one text for every entry, got none for entry 1"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, references, message):
    with pytest.raises(InputError, match=message):
        score_texts(texts, references)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("mlpfusion.extras.find_spec", lambda module: None)
    message = (
        r"scoring generated texts needs nltk, rouge-score, sacrebleu, unidecode: pip install 'mlpfusion\[generation\]'"
    )
    with pytest.raises(InputError, match=message):
        score_texts(["a"], [["a"]])
    assert GENERATION_SCORES.missing()
