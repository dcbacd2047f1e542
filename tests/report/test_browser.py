"""The report in a real browser, where there is one: nothing to complain of, and nothing that could be loaded."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tuned_records import make_distill_record, make_tune_record

from mlpfusion.report.html.page import report

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom"),
)


@pytest.fixture
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    return found


def opened(browser: str, page: Path) -> tuple[str, list[str]]:
    """The document as the browser has it in the end, and what it wrote to its console."""
    profile = page.with_suffix(".profile")
    done = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_browser_has_nothing_to_complain_of(browser, tmp_path):
    page = tmp_path / "a.html"
    page.write_text(report([make_tune_record("<script>document.title = 'run'</script>"), make_distill_record()]))
    document, console = opened(browser, page)
    assert console == []
    assert "<title>2 runs of mlpfusion</title>" in document
    assert document.count('role="img"') == 3


def test_the_browser_is_told_to_run_and_to_load_nothing(browser, tmp_path):
    """As if something had got into the page after all."""
    page = tmp_path / "a.html"
    bad = '<script>document.title = "run"</script><img src="https://example.invalid/a.png">'
    page.write_text(report([make_tune_record()]).replace("<h1>", bad + "<h1>"))
    document, console = opened(browser, page)
    assert "<title>run</title>" not in document
    assert any("script" in line and "Content Security Policy" in line for line in console)
    assert any("a.png" in line and "Content Security Policy" in line for line in console)
