"""HTML that is safe by construction: a text is escaped unless it is an Html that `tag` made."""

import html
from typing import Any

from ivlite.agent.export.text import UNWANTED

VOID = {"meta", "img", "br", "link", "hr"}


class Html(str):
    """Text that is already HTML."""


def escaped(child: Any) -> str:
    """A child of an element as HTML. None is nothing; a list is each of its children."""
    if child is None:
        return ""
    if isinstance(child, list | tuple):
        return "".join(map(escaped, child))
    if isinstance(child, Html):
        return child
    return html.escape(clean(str(child)))


def clean(text: str) -> str:
    """A text without control characters; line breaks stay."""
    return UNWANTED.sub(lambda found: "\n" if found[0] == "\n" else " ", text)


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Attributes: "class_" is class, "data_time" is data-time; None and False are left out, True has no value."""
    given = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            given += f" {key}"
        elif value is not None and value is not False:
            given += f' {key}="{html.escape(clean(str(value)))}"'
    if name in VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{escaped(children)}</{name}>")


def join(separator: str, parts: list[Any]) -> list[Any]:
    """Parts with a text between each two."""
    return [piece for part in parts for piece in (separator, part)][1:]
