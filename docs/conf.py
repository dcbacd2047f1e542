"""Sphinx builds the web site from the Markdown files of this repository: `make site`.

Its source folder is the repository, so that a link from one file to another holds in both. The table of contents comes
from the folders below `docs`, the page of public names from the package: a page or a name needs no line here.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import mlpfusion

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
from public_names import MARKER, public_names  # noqa: E402

# In this order; folders without a line come after these, by name.
CAPTIONS = {"jobs": "Jobs", "concepts": "Concepts", "how-to": "How to", "decisions": "Decisions"}
REFERENCE = ("docs/cli", "docs/api")
PROJECT = ("CONTRIBUTING", "ARCHITECTURE", "CHANGELOG", "LOG")

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


def toctree(caption: str, pages: list[str]) -> str:
    lines = ["```{toctree}", ":hidden:", ":maxdepth: 1", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(f"/{line}" if line in pages else line for line in lines)


def table_of_contents() -> str:
    """The toctrees of all pages: those of `docs`, those of each of its folders, the reference, the project."""
    pages = [f"docs/{path.stem}" for path in sorted(DOCS.glob("*.md"))]
    guide = [page for page in pages if page not in (root_doc, *REFERENCE)]
    folders = {path.parent.name for path in DOCS.glob("*/*.md")}
    parts = [("Guide", guide)]
    for folder in [*CAPTIONS, *sorted(folders - set(CAPTIONS))]:
        inside = [f"docs/{folder}/{path.stem}" for path in sorted((DOCS / folder).glob("*.md"))]
        parts.append((CAPTIONS.get(folder, folder.replace("-", " ").capitalize()), inside))
    parts += [("Reference", list(REFERENCE)), ("Project", list(PROJECT))]
    return "\n\n".join(toctree(caption, inside) for caption, inside in parts if inside)


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
    if docname == root_doc:
        source[0] += "\n\n" + table_of_contents()
    elif docname == "README":
        source[0] = "---\norphan: true\n---\n" + source[0]
    elif docname == "docs/api":
        source[0] = source[0].replace(MARKER, public_names())


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
