"""The table of deployment paths, made of a record."""

from scripts import load_script


def row(path, form, outcome, model="Llama", **more):
    return {"path": path, "model": model, "form": form, "outcome": outcome} | more


def test_cells_say_what_all_rows_did_or_who_did_what():
    tables = load_script("docs/tables.py")
    rows = [
        row("a", "fusion", "works", difference=3e-7),
        row("a", "ntk-match", "works", difference=4e-6),
        row("a", "folded", "works", difference=0.0),
        row("a", "uneven", "works", "MiniLM", difference=1e-6),
        row("a", "uneven", "refused", reason="one width"),
        row("b", "fusion", "works", difference=0.1, warned="quantise after folding"),
        row("b", "ntk-match", "fails", reason="it fell over"),
        row("b", "folded", "not run", reason="needs that"),
        row("b", "uneven", "not run", reason="needs that"),
        *(row("c", form, "not run", "", reason="needs a GPU") for form in ("fusion", "ntk-match", "folded", "uneven")),
    ]
    lines = tables.paths_table({"rows": rows}).splitlines()
    assert lines[2:] == [
        "| a | Llama and MiniLM | works, 4e-06 | works, 0 | MiniLM: works, 1e-06; Llama: refused: one width |",
        "| b | Llama | Fusion: works, warns, 1e-01; NTKMatch: fails: it fell over | not run: needs that "
        "| not run: needs that |",
        "| c |  | not run: needs a GPU | not run: needs a GPU | not run: needs a GPU |",
    ]
