"""The tables of texts written by a small GPT-2, made of a record."""

from typing import Any

import pytest
from scripts import load_script


def row(label: str, seed: int, bleu: float, *, chosen: bool = True) -> dict[str, Any]:
    scores = {"bleu_protocol": bleu, "meteor_exact_stem": bleu / 200}
    splits = {"test": scores, "test SEEN": scores, "test UNSEEN": scores}
    return {"label": label, "seed": seed, "chosen": chosen, "run": {"scores": splits}}


def test_means_and_deviations_of_the_chosen_runs_stand_in_the_table():
    rows = [row("full", 0, 10.0), row("full", 1, 12.0), row("fusion", 0, 9.0), row("fusion", 0, 99.0, chosen=False)]
    table = load_script("docs/tables.py").webnlg_table({"rows": rows}, ("bleu_protocol", "meteor_exact_stem"))
    assert table.splitlines()[2:] == [
        "| full | 11.00 +- 1.41 | 11.00 +- 1.41 | 11.00 +- 1.41 | 5.50 +- 0.71 | 5.50 +- 0.71 | 5.50 +- 0.71 |",
        "| fusion | 9.00 | 9.00 | 9.00 | 4.50 | 4.50 | 4.50 |",
    ]


@pytest.mark.parametrize(("factor", "word", "tau"), [(1, "confirmed", "1.00"), (-1, "refuted", "-1.00")])
def test_the_order_of_all_methods_of_the_paper_is_judged(factor, word, tau):
    tables = load_script("docs/tables.py")
    paper = load_script("docs/parts/generation.py").PAPER_BLEU
    rows = [row(label, 0, 50 + factor * bleu) for label, bleu in paper.items()] + [row("ntk-match", 0, 1.0)]
    sentence = tables.webnlg_order({"rows": rows})
    assert f"Table 3 is {word}: " in sentence
    assert f"over the 7 methods in both, is {tau} (" in sentence


def test_what_was_written_stands_beside_its_facts():
    entries = [{"group": "SEEN", "facts": "<a>", "texts": {"full": "One.", "fusion": ""}}]
    text = load_script("docs/tables.py").webnlg_examples({"entries": entries})
    assert text.splitlines() == [
        "1. SEEN: `<a>`",
        "",
        "| method | entry 1 |",
        "| --- | --- |",
        "| full | One. |",
        "| fusion | (nothing) |",
    ]
