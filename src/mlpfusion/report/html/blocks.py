"""The parts of a page: paragraphs, tables, figures, lines to copy."""

from collections.abc import Sequence
from urllib.parse import quote
from xml.etree.ElementTree import Element

from mlpfusion.record import Origin
from mlpfusion.report.cells import Table
from mlpfusion.report.html.charts import Curve, swatch
from mlpfusion.report.html.element import element


def section(title: str, *parts: Element | None) -> Element:
    """A part of the page under a heading; None is left out."""
    return element("section", element("h3", title), *(part for part in parts if part is not None))


def paragraph(*content: Element | str, note: bool = False) -> Element:
    """A paragraph, words between backticks as code; `note` is for a warning."""
    parts = [part for one in content for part in ([one] if isinstance(one, Element) else _with_code(one))]
    return element("p", *parts, class_="note") if note else element("p", *parts)


def _with_code(words: str) -> list[Element | str]:
    return [element("code", part) if index % 2 else part for index, part in enumerate(words.split("`"))]


def table(content: Table) -> Element:
    """A table with a caption; the first column names the rows. A narrow screen scrolls it sideways."""
    head = element("tr", *(_heading(title, "col") for title in content.header))
    rows = [element("tr", _heading(row[0], "row"), *(element("td", cell) for cell in row[1:])) for row in content.rows]
    made = element("table", element("caption", content.caption), element("thead", head), element("tbody", *rows))
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label=content.caption)


def figure(title: str, chart: Element, note: str = "", curves: Sequence[Curve] = ()) -> Element:
    """A chart under its title, with a legend of its curves and a note."""
    parts = [element("figcaption", element("b", title), *([f" {note}"] if note else [])), chart]
    if curves:
        parts.append(element("ul", *(element("li", swatch(curve), curve.label) for curve in curves), class_="legend"))
    return element("figure", *parts)


def figures(*content: Element | None) -> Element:
    """Charts side by side where there is room."""
    return element("div", *(one for one in content if one is not None), class_="figures")


def code(text: str) -> Element:
    """Lines to copy."""
    return element("pre", element("code", text), tabindex=0)


def source(origin: Origin) -> tuple[Element | str, ...]:
    """The name of a checkpoint; a link with its commit if on the Hub."""
    if not origin.is_hub_id:
        return (element("code", origin.name),)
    link = element("a", origin.name, href=f"https://huggingface.co/{quote(origin.name, safe='/')}", rel="noreferrer")
    return (link, f" (commit {origin.commit})") if origin.commit else (link,)


def versions_table(versions: dict[str, str]) -> Element:
    """The versions of the packages behind the numbers."""
    return table(Table("Versions", ("package", "version"), tuple(versions.items())))


def _heading(words: str, scope: str) -> Element:
    return element("th", words, scope=scope) if words else element("td")
