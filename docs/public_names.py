"""The public names as Markdown for Sphinx: signatures and docstrings, read from the package when the site is built."""

import inspect
import re
from typing import Any

from sphinx.util.inspect import stringify_signature

import mlpfusion

MARKER = "<!-- public names -->"
# Longer than any fence of a docstring.
FENCE = "``````"


def public_names() -> str:
    """Functions, then methods, then other classes, each in alphabetical order."""
    public = {name: getattr(mlpfusion, name) for name in sorted(mlpfusion.__dir__(), key=str.lower) if name[0] != "_"}
    parts: dict[str, list[str]] = {"Functions": [], "Methods": [], "Other classes": []}
    for name, thing in public.items():
        # A method is a config of a module below `methods`.
        kind = "Methods" if "methods" in thing.__module__ else "Other classes"
        parts["Functions" if inspect.isfunction(thing) else kind].append(name)
    for thing in public.values():
        thing.__module__ = "mlpfusion"  # annotations then say the public name, and become links
    return "\n\n".join(
        f"## {title}\n\n" + "\n\n".join(entry(name, public) for name in names) for title, names in parts.items()
    )


def entry(name: str, public: dict[str, Any]) -> str:
    """One name with its signature, its docstring and those of its methods."""
    thing = public[name]
    if inspect.isfunction(thing):
        return directive("function", f"mlpfusion.{name}", thing, [], public)
    if issubclass(thing, Exception):
        return directive("exception", f"mlpfusion.{name}", thing, [], public)
    members = [
        directive("method", member, value, [], public)
        for member, value in vars(thing).items()
        if inspect.isfunction(value) and member[0] != "_" and value.__doc__
    ]
    return directive("class", f"mlpfusion.{name}", thing, members, public)


def directive(kind: str, name: str, thing: Any, inside: list[str], public: dict[str, Any]) -> str:
    """A directive of Sphinx's Python domain; `inside` stands below the docstring."""
    signature = inspect.signature(thing)
    if kind == "method":
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    returns = kind in ("function", "method")
    shown = stringify_signature(signature, show_return_annotation=returns, unqualified_typehints=True)
    fence = FENCE if kind == "method" else FENCE + "`"
    body = [linked(examples_fenced(inspect.getdoc(thing) or ""), public), *inside]
    return f"{fence}{{py:{kind}}} {name}{shown}\n\n" + "\n\n".join(body) + f"\n{fence}"


def examples_fenced(docstring: str) -> str:
    """Examples after `>>>` as code: in Markdown they would be quotations."""
    return re.sub(r"^(>>> .*(?:\n.+)*)", r"```pycon\n\1\n```", docstring, flags=re.MULTILINE)


def linked(docstring: str, public: dict[str, Any]) -> str:
    """`Fusion` or `Fusion()` in a docstring as a link to that name."""

    def link(match: re.Match[str]) -> str:
        return f"{{py:obj}}`{match[1]} <mlpfusion.{match[2]}>`" if match[2] in public else match[0]

    return re.sub(r"(?<!`)`((\w+)(?:\(\))?)`(?!`)", link, docstring)
