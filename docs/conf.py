"""Sphinx builds the web site from the Markdown files of this repository: `make site`.

Its source folder is the repository, so that a link from one file to another holds in both. The table of contents comes
from `docs/index.md` and the folders, the page of public names from the package: a page or a name needs no line here.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import mlpfusion

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
from public_names import MARKER, public_names  # noqa: E402

project = "mlpfusion"
version = release = mlpfusion.__version__
html_title = f"{project} {version}"

extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md"]
# Folders that would be searched for nothing, environments among them.
exclude_patterns = [".*", "src", "tests", "benchmarks", "examples", "site", "build", "dist", "demo-out", "bench-out"]
myst_heading_anchors = 4
# A reference that is missing is a warning, and a warning an error; other packages' pages are not fetched to link there.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mlpfusion\.[A-Za-z]+$).*")]
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88

highlight_language = "text"
html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "80%"}}
html_static_path = ["_static"]
html_css_files = ["width.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def table_of_contents(index: str) -> str:
    """Toctrees of all pages: by the headings and links of `docs/index.md`, the others by their folder."""
    parts: dict[str, list[str]] = {}
    placed = {root_doc, "README"}

    def place(caption: str, page: Path) -> None:
        name = str(page.resolve().relative_to(ROOT).with_suffix(""))
        if name not in placed:
            placed.add(name)
            parts.setdefault(caption, []).append(name)

    for part in index.split("\n## ")[1:]:
        for link in re.findall(r"\]\(([^)#:]+\.md)\)", part):
            place(part.partition("\n")[0], DOCS / link)
    for page in sorted(DOCS.rglob("*.md")):
        place("More" if page.parent == DOCS else page.parent.name.replace("-", " ").capitalize(), page)
    head = "```{toctree}\n:hidden:\n:maxdepth: 1\n:caption: "
    return "\n\n".join(
        f"{head}{caption}\n\n" + "\n".join(f"/{page}" for page in pages) + "\n```" for caption, pages in parts.items()
    )


def without_folder_links(text: str, folder: Path) -> str:
    """Links to folders as plain text: the site has pages and files."""
    return re.sub(
        r"(?<!!)\[([^]]+)\]\(([^)#:\s]+)\)",
        lambda match: match[1] if (folder / match[2]).is_dir() else match[0],
        text,
    )


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Adds what is made at build time to the text of a page."""
    source[0] = without_folder_links(source[0], Path(app.srcdir, docname).parent)
    source[0] = re.sub(r"(?<=\d) \+- (?=\d)", "\u00a0\u00b1\u00a0", source[0])  # one line in narrow columns
    if docname == root_doc:
        source[0] += "\n\n" + table_of_contents(source[0])
    elif docname == "README":
        source[0] = "---\norphan: true\n---\n" + source[0]
    elif docname == "docs/api":
        source[0] = source[0].replace(MARKER, public_names())


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
