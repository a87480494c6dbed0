"""Building HTML and SVG so that nothing gets in unescaped: what is not made here is text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from kiln.verify.render.common import clean

_VOID = frozenset({"br", "col", "hr", "link", "meta"})
# A line break after all others shows nothing, and keeps the page's source and a golden file's diff readable.
_INLINE = frozenset({"a", "b", "code", "mark", "span", "strong", "td", "text", "th"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """An element. Children that are no ``Html`` are escaped; attributes that are None or False are left out, True stands alone.

    ``class_`` is class, and an underscore elsewhere is a hyphen. Values are escaped; event handlers and addresses are not for data.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    end = "" if name in _INLINE else "\n"
    if name in _VOID:
        return Html(f"<{name}{written}>{end}")
    return Html(f"<{name}{written}>{join(*children)}</{name}>{end}")


def join(*children: Child) -> Html:
    """Children one after the other, escaped where they are text."""
    return Html("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, str):
        return escape(clean(child))
    return "".join(_child(inner) for inner in child)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(clean(value))}"'
