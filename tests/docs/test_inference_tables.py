"""The tables of the speed of inference, made of a record."""

from scripts import load_script


def form(seconds, over_full, size, peak):
    return {"seconds": seconds, "over_full": over_full, "bytes": size * 10**6, "peak_bytes": peak * 10**6}


def test_ratios_peaks_and_sizes_stand_in_their_columns():
    tables = load_script("docs/tables.py")
    forms = {"full": form(0.5, 1.0, 90, 700), "50 %": form(0.4, 1.25, 80, 650), "25 %": form(0.25, 2.0, 70, 600)}
    row = {"model": "a", "engine": "torch", "phase": "reading", "batch": 32, "tokens": 4096, "forms": forms}
    record = {"rows": [row]}
    assert tables.inference_table(record).splitlines()[2:] == [
        "| a | torch | reading | 32 | 8,192 | 1.25x | 2.00x | 700 | 600 |"
    ]
    assert tables.inference_sizes(record).splitlines()[2:] == ["| a | torch | 90 | 80 | 70 |"]
