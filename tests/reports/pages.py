"""Parse a page and find what it would load, for the tests of all pages."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

LOADING = {"src", "href", "srcset", "poster", "data", "action", "xlink:href"}


class Page(HTMLParser):
    """The elements and the visible text of a page, and the pages in its inline frames."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._silent = 0
        self.frames: list[Page] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in LOADING]
        self._silent += tag in ("script", "style")
        self.frames += [Page(value or "") for name, value in attrs if name == "srcdoc"]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._silent else data


def external_addresses(text: str) -> list[str]:
    """Return every address in a page that a browser would fetch."""
    page = Page(text)
    links = page.links + [link for frame in page.frames for link in frame.links]
    spelled = re.findall(r"(?:https?|wss?|ftp):\/\/[^\s\"'<>]{3,60}", unescape(text))
    imported = re.findall(r"@import|url\((?!data:)", text)
    return [link for link in links if re.match(r"(?i)[a-z]+:|//", link) and not link.startswith("data:")] + [
        *spelled,
        *imported,
    ]
