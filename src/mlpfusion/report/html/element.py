"""HTML as a tree of elements; any text is shown as it is."""

from xml.etree.ElementTree import Element, tostring

from mlpfusion.errors import printable

_LINES = ("section", "header", "footer", "figure", "table", "tr", "li", "h1", "h2", "h3", "p", "pre", "svg", "style")


def element(tag: str, *content: Element | str, **attributes: str | float) -> Element:
    """Makes an element; `class_` is the attribute `class`, `aria_label` is `aria-label`.

    Markup in a text or an attribute is escaped when the page is written, control characters at once.

    >>> html(element("p", "a < b, ", element("b", "c"), " d", class_="note"))
    '<p class="note">a &lt; b, <b>c</b> d</p>\\n'
    """
    names = {name.rstrip("_").replace("_", "-"): _text(value) for name, value in attributes.items()}
    made, last = Element(tag, names), None
    for part in content:
        if isinstance(part, Element):
            made.append(part)
            last = part
        elif last is None:
            made.text = (made.text or "") + _text(part)
        else:
            last.tail = (last.tail or "") + _text(part)
    if tag in _LINES:
        made.tail = "\n"
    return made


def html(root: Element) -> str:
    """The element as HTML."""
    return tostring(root, encoding="unicode", method="html")


def xml(root: Element) -> str:
    """The element as XML, as a picture in a file of its own has to be."""
    return tostring(root, encoding="unicode")


def _text(value: str | float) -> str:
    return printable(value, keep="\n") if isinstance(value, str) else f"{value:.6g}"
