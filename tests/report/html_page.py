"""A page as the tests of this room read it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps tags, attributes and the visible text by section."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.section = "header"
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.sections[self.section] = self.sections.get(self.section, "") + data

    @property
    def pictures(self) -> list[str]:
        """The alternative texts of the pictures."""
        return [attrs.get("aria-label") or "" for _, attrs in self.tags if "img" in roles(attrs)]

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]

    def links(self) -> list[str]:
        """The ids that links and references inside pictures point to."""
        targets = []
        for _, attrs in self.tags:
            for name, value in attrs.items():
                if name.endswith("href") and value:
                    targets.append(value.removeprefix("#"))
                targets += re.findall(r"url\(#([^)]*)\)", value or "")
        return targets


def roles(attrs: dict[str, str | None]) -> list[str]:
    return (attrs.get("role") or "").split()
