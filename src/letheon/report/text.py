"""Untrusted text made safe to show: generations of a model, rows of a file.

A terminal obeys escape sequences and a browser obeys tags and bidirectional overrides. Each invisible or controlling
character is therefore written out as a visible escape wherever a report shows text.
"""

import re

from markupsafe import Markup, escape
from rich.text import Text

from letheon.storage.visible import pieces, visible, visible_line

__all__ = ["pieces", "shorten", "to_markdown_text", "to_markup", "to_rich_text", "visible", "visible_line"]


def shorten(text: str, max_characters: int | None) -> str:
    """Cut `text` to `max_characters` and say how many were left out; None leaves it whole."""
    if max_characters is None or len(text) <= max_characters:
        return text
    return f"{text[:max_characters].rstrip()} … (+{len(text) - max_characters} characters)"


def to_rich_text(text: str, *, style: str = "") -> Text:
    """Return `text` for a rich console: no markup is read from it, no control sequence is left in it."""
    shown = Text(style=style)
    for piece, is_escape in pieces(text):
        shown.append(piece, style="reverse dim" if is_escape else "")
    return shown


def to_markup(text: str) -> Markup:
    """Return `text` as HTML: tags escaped, invisible characters as marked escapes."""
    shown = (
        Markup('<span class="escape">{}</span>').format(piece) if is_escape else escape(piece)
        for piece, is_escape in pieces(text)
    )
    return Markup("").join(shown)


def to_markdown_text(text: str) -> str:
    """Return `text` as one line of Markdown in which nothing is markup, a link, a table cell's end or HTML."""
    html_safe = visible_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#!$])", r"\\\1", html_safe)
