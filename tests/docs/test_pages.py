"""The Markdown pages: links and anchors lead somewhere, one title a page, a README of two screens."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_pages import DOCUMENTATION, PAGES, ROOT, anchor_of, anchors, blocks, headings, links, name_of, prose

# What is, not what was: the log and the decisions name files of their day.
NOW = [page for page in PAGES if page.name not in ("LOG.md", "CHANGELOG.md") and "decisions" not in page.parts]

each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


@each_page
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.is_file(), f"{link} names no file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert not anchor or anchor in anchors(target), f"{link} names no heading"


@pytest.mark.parametrize("path", [ROOT / "Makefile", ROOT / ".ci/run", *NOW], ids=name_of)
def test_files_named_in_a_text_exist(path: Path) -> None:
    text = prose(path) if path.suffix == ".md" else path.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:src|tests|benchmarks|docs|examples)/[\w./-]*\w\.\w+)", text)
    assert [file for file in named if "NAME" not in file and not (ROOT / file).exists()] == []


@each_page
def test_a_page_has_one_title_and_anchors_of_one_meaning(page: Path) -> None:
    found = headings(page)
    assert [level for level, _ in found].count(1) == 1
    assert found[0][0] == 1
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts), "two headings would share an anchor"


@pytest.mark.parametrize("page", DOCUMENTATION, ids=name_of)
def test_every_block_names_its_language(page: Path) -> None:
    assert [block.where for block in blocks(page) if not block.language] == []


def test_the_log_has_an_index_that_answers_every_entry() -> None:
    page = ROOT / "LOG.md"
    rows = re.findall(r"(?m)^\| (\d{4}-\d\d-\d\d) \| \[.+\?\]\(#(.+)\) \| (.+) \|$", page.read_text(encoding="utf-8"))
    entries = [text for level, text in headings(page) if level == 2]
    assert [anchor for _, anchor, _ in rows] == [anchor_of(text) for text in entries]
    assert [date for date, _, _ in rows] == [text[:10] for text in entries]
    assert [answer for _, _, answer in rows if len(answer.split()) > 9] == []


def test_every_page_can_be_reached() -> None:
    start = ROOT / "docs" / "index.md"
    seen, ahead = set(), [start, ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if ".md" in link}
        ahead += [target for target in targets if target in PAGES and target not in seen]
    assert [name_of(page) for page in PAGES if page not in seen and "decisions" not in page.parts] == []
