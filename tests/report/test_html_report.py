"""`mlpfusion report`: the numbers of the records, shown as text, in one file that asks for nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import call, refused
from html_page import Page, assert_asks_for_nothing
from tiny_task import save_checkpoint

RECORD = "mlp_fusion_record.json"


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A folder that `compress` wrote."""
    folder = tmp_path_factory.mktemp("made")
    save_checkpoint(folder / "model")
    arguments = ("--layers", "last:2", "--keep-ratio", 0.25, "--seed", 3, "--option", "num_init=2")
    assert call("compress", folder / "model", folder / "cut", *arguments).exit_code == 0
    return folder / "cut"


def report_of(out: Path, *folders: Path) -> Page:
    result = call("report", *folders, "--out", out)
    assert result.exit_code == 0, result.output
    source = out.read_text(encoding="utf-8")
    assert_asks_for_nothing(source)
    return Page(source)


def changed(cut: Path, folder: Path, **entries: Any) -> Path:
    """A folder with the record of `cut`, some entries changed."""
    folder.mkdir()
    record = json.loads((cut / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | entries))
    return folder


def test_the_numbers_of_a_compression_are_those_of_its_record_and_its_card(cut, tmp_path):
    page, record = report_of(tmp_path / "a.html", cut), json.loads((cut / RECORD).read_text())
    header, *rows = page.tables["Every layer that was cut"]
    assert header[-1] == "single neurons"
    for row, site in zip(rows, record["sites"], strict=True):
        metrics = site["metrics"]
        assert row == [
            site["path"],
            str(site["original_width"]),
            str(site["width"]),
            f"{site['parameters']:,}",
            f"{100 * metrics['inertia_ratio']:.1f} %",
            str(metrics["largest_cluster"]),
            str(metrics["singletons"]),
        ]
        assert f"{site['path']} {100 * metrics['inertia_ratio']:.1f} %" in next(
            chart for chart in page.charts() if chart.startswith("Inertia left: ")
        )
    before, after = record["original"], record["compressed"]
    share = f"{100 * after['parameters'] / before['parameters']:.1f} %"
    assert ["parameters", f"{before['parameters']:,}", f"{after['parameters']:,} ({share})"] in page.tables[
        "Size of the model"
    ]
    card = (cut / "README.md").read_text()
    for caption in ("Every layer that was cut", "Size of the model"):
        for row in page.tables[caption]:
            assert f"| {' | '.join(row)} |" in card
    assert record["source_sha256"] in page.words
    assert [["package", "version"], *map(list, record["versions"].items())] == page.tables["Versions"]


def test_a_bar_is_as_long_as_its_number(cut, tmp_path):
    page = report_of(tmp_path / "a.html", cut)
    widths = [str(attributes["width"]) for tag, attributes in page.tags if attributes.get("class") == "bar"]
    left = json.loads((cut / RECORD).read_text())
    shares = [left["compressed"][name] / left["original"][name] for name in ("parameters", "bytes")]
    assert [float(width.removesuffix("%")) for width in widths[:2]] == pytest.approx(
        [100 * share for share in shares], rel=1e-3
    )


def test_the_commands_of_a_report_do_the_same_again(cut, tmp_path):
    page = report_of(tmp_path / "a.html", cut)
    line = next(line for line in page.words.splitlines() if line.startswith("mlpfusion compress"))
    words = line.split()
    assert words[:3] == ["mlpfusion", "compress", "model"]
    assert call("compress", cut.parent / "model", tmp_path / "again", *words[4:]).exit_code == 0
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (cut / name).read_bytes()


def test_the_same_record_gives_the_same_bytes(cut, tmp_path):
    for name in ("a", "b"):
        report_of(tmp_path / f"{name}.html", cut)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_hostile_names_are_shown_as_text(cut, tmp_path):
    name = "<script>alert(1)</script> [x](javascript:1) \x1b[31m \"'&amp; ]]> --> </style>"
    model = {"name": name, "is_hub_id": True, "revision": "main; rm -rf $HOME", "commit": name}
    sites = json.loads((cut / RECORD).read_text())["sites"]
    recipe = json.loads((cut / RECORD).read_text())["recipe"] | {"layers": name, "method": name}
    folder = changed(
        cut,
        tmp_path / "b",
        model=model,
        sites=[sites[0] | {"path": name}],
        recipe=recipe,
        versions={name: name} | {"mlpfusion": "1"},
    )
    page = report_of(tmp_path / "b.html", folder)
    shown = name.replace("\x1b", "\\x1b")
    assert page.tables["Every layer that was cut"][1][0] == shown
    assert page.tables["Versions"][1] == [shown, shown]
    assert "'main; rm -rf $HOME'" in page.words
    assert "\x1b" not in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"sites": 3}, "must have a list for `sites`, got 3"),
        ({"sites": [{}]}, "must have the entry `sites[0].path`, which is missing"),
        ({"seconds": "long"}, "must have a number for `seconds`, got 'long'"),
        ({"original": None}, "must have an object for `original`, got None"),
        ({"recipe": {"method": "fusion"}}, "must have the entry `layers`, which is missing"),
        ({"budget": {"unit": 1}}, "must have the entry `budget`, which is missing"),
        ({"of_the_future": 1}, "must have entries among recipe, source_sha256"),
        (
            {"recipe": {"method": "fusion", "layers": "all", "seed": 0, "calibration": {}}},
            "`calibration.samples`, which",
        ),
        ({"recipe": {"method": "fusion", "layers": "all", "seed": 0, "options": 1}}, "an object for `options`, got 1"),
        ({"original": {"parameters": 0, "bytes": 1}}, "must have sizes of at least 1 in `original`"),
        ({"seconds": 10**400}, "must have a number for `seconds`"),
        ({"sites": []}, "must have at least one entry in `sites`, got none"),
    ],
    ids=str,
)
def test_a_broken_record_is_refused_by_its_name(entries, message, cut, tmp_path):
    folder = changed(cut, tmp_path / "broken", **entries)
    line = refused("report", folder, "--out", tmp_path / "a.html")
    assert message in line
    assert f"{folder}/{RECORD}" in line
    assert {entry.name for entry in tmp_path.iterdir()} == {"broken"}


@pytest.mark.parametrize(
    ("changed_site", "message"),
    [
        ({"kind": "new"}, "must have kinds among narrow, "),
        ({"width": 0}, "must have widths and parameters of at least 1"),
        ({"kind": "routed"}, "must have the size of every block"),
        ({"kind": "low-rank", "rank": {}}, "must have the size of every block"),
    ],
    ids=str,
)
def test_a_broken_block_is_refused(changed_site, message, cut, tmp_path):
    sites = json.loads((cut / RECORD).read_text())["sites"]
    folder = changed(cut, tmp_path / "broken", sites=[sites[0], sites[1] | changed_site])
    assert message in refused("report", folder, "--out", tmp_path / "a.html")


@pytest.mark.parametrize(
    ("seen", "flags"),
    [
        ({"samples": 256, "tokens": 9, "file": "a b.txt", "column": "text"}, "--calibration 'a b.txt' --column text"),
        ({"samples": 8, "tokens": 9, "file": "random tokens"}, "--data-free --calibration-samples 8"),
        ({"samples": 8, "tokens": 9}, ""),
    ],
)
def test_the_command_tells_of_the_calibration(seen, flags, cut, tmp_path):
    recipe = json.loads((cut / RECORD).read_text())["recipe"] | {
        "calibration": seen,
        "method": "ntk-match",
        "options": {},
    }
    page = report_of(tmp_path / "a.html", changed(cut, tmp_path / "calibrated", recipe=recipe))
    (line,) = [line for line in page.words.splitlines() if line.startswith("mlpfusion compress")]
    assert line == " ".join(
        f"mlpfusion compress model OUT --method ntk-match --layers last:2 --keep-ratio 0.25 --seed 3 {flags}".split()
    )


def test_numbers_that_cannot_be_drawn_are_told(cut, tmp_path):
    sites = json.loads((cut / RECORD).read_text())["sites"]
    wild = {"inertia_ratio": float("nan"), "largest_cluster": 1e308, "singletons": float("inf")}
    sites[0]["metrics"] |= wild
    page = report_of(tmp_path / "a.html", changed(cut, tmp_path / "wild", sites=sites))
    assert page.tables["Every layer that was cut"][1][4] == "nan %"
    assert not [attributes for _, attributes in page.tags if "inf" in str(attributes.get("width"))]


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100000, "\xff", '{"a": 1}', "null"], ids=range(7))
def test_what_is_no_record_is_refused_by_its_name(text, tmp_path):
    (tmp_path / RECORD).write_bytes(text.encode("latin-1"))
    assert f"{tmp_path}/{RECORD} must" in refused("report", tmp_path, "--out", tmp_path / "a.html")


def test_a_place_without_a_record_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        line = refused("report", tmp_path / name, "--out", tmp_path / "a.html")
        assert line.startswith("Error: DIR... must hold a record (mlp_fusion_record.json, ")
    assert {entry.name for entry in tmp_path.iterdir()} == {"empty"}


def test_only_a_report_is_replaced_and_only_when_asked(cut, tmp_path):
    out = tmp_path / "new" / "a.html"
    report_of(out, cut)
    assert "`--out` must be new" in refused("report", cut, "--out", out)
    out.write_text(out.read_text() + "more")
    assert call("report", cut, "--out", out, "--overwrite").exit_code == 0
    assert not out.read_text().endswith("more")
    own = tmp_path / "own.html"
    own.write_text("mine")
    assert "which this program did not write" in refused("report", cut, "--out", own, "--overwrite")
    assert own.read_text() == "mine"
    assert "`--out` must be a file" in refused("report", cut, "--out", tmp_path, "--overwrite")
    assert {entry.name for entry in tmp_path.iterdir()} == {"new", "own.html"}


def test_a_full_disk_leaves_nothing(cut, tmp_path, monkeypatch):
    def full(_self, *_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert call("report", cut, "--out", tmp_path / "new" / "a.html").exit_code == 3
    assert not list(tmp_path.iterdir())
