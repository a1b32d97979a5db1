"""Texts that would steer a browser, a terminal or a spreadsheet, and what a browser would make of a page."""

from html.parser import HTMLParser

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "javascript:alert(1)",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png)",
    "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil.example\x07link",
    "\x9b31m\r\b\b\bover",
    "safe\u202egnp.exe\u2066\u200b\ufeff",
    '=HYPERLINK("http://evil.example")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "| cell | `code` \n\n# heading\n---",
    "line\u2028separator\u0085\x00",
]
CONTROLS = [chr(c) for c in (*range(9), 11, 12, *range(14, 32), 0x7F, 0x9B, 0x202E, 0x2066, 0x200B, 0xFEFF, 0x2028)]


class Parsed(HTMLParser):
    """What a browser would make of a page: its tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href")]
