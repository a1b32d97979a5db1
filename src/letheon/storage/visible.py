"""Untrusted text, with its invisible characters written as escapes.

A terminal obeys escape sequences, and bidirectional overrides make a line read otherwise than it is. Errors, notes and
reports therefore show each invisible or controlling character as a visible escape.
"""

import unicodedata
from collections.abc import Iterator

_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHORT_ESCAPES = {"\t": "\\t", "\r": "\\r", "\0": "\\0"}


def visible(text: str) -> str:
    r"""Return `text` with every control, format, bidirectional, unassigned and surrogate character as an escape.

    A newline stays a newline; a space stays a space. "\x1b[31m" becomes the six visible characters `\x1b[31m`.
    """
    return "".join(piece for piece, _ in pieces(text))


def visible_line(text: str) -> str:
    """Return `visible(text)` on one line: newlines become the two characters backslash and n."""
    return visible(text).replace("\n", "\\n")


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Cut `text` into (what to show, whether it stands for a character that cannot be seen); empty text gives none."""
    plain = ""
    for character in text:
        if character != "\n" and unicodedata.category(character) in _INVISIBLE_CATEGORIES:
            if plain:
                yield plain, False
            plain = ""
            yield _escape_of(character), True
        else:
            plain += character
    if plain:
        yield plain, False


def _escape_of(character: str) -> str:
    if character in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[character]
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
