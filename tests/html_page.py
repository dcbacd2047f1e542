"""An HTML page as a reader sees it: its words, its tables, what it would load."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "link", "img", "br")


@dataclass
class Page(HTMLParser):
    """Caption -> rows of cells of every table, all tags with their attributes, and all words that are shown.

    The second table of one caption is `CAPTION #2`.
    """

    source: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    words: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1] == "caption":
            again = sum(caption.partition(" #")[0] == data for caption in self.tables)
            self.caption = f"{data} #{again + 1}" if again else data
            self.tables[self.caption] = []
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.caption][-1][-1] += data

    def charts(self) -> list[str]:
        """What the charts say to those who do not see them."""
        return [str(attributes["aria-label"]) for tag, attributes in self.tags if attributes.get("role") == "img"]


def assert_asks_for_nothing(source: str) -> None:
    """The page runs no script and loads nothing; every chart and table has a name."""
    page = Page(source)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "form", "base"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "xlink:href")]
        assert str(attributes.get("href", "https://huggingface.co/")).startswith("https://huggingface.co/")
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert sum(tag == "table" for tag, _ in page.tags) == len(page.tables)
    assert all(page.charts())
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "chart"]
    assert all(attributes.get("role") == "img" for attributes in charts)
