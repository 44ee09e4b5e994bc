"""A long list in pages."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from flask import request


@dataclass(frozen=True)
class Page:
    """Which part of a list is shown, by the request's ``page`` (or another word, where a page has two lists)."""

    number: int
    pages: int
    per_page: int
    count: int
    word: str

    @classmethod
    def of(cls, count: int, per_page: int, word: str = "page") -> Page:
        """Find the page that the request asks for, or the nearest that exists.

        Parameters
        ----------
        count
            Entries in all.
        per_page
            Entries on a page.
        word
            Name of the page's number in the address.

        Returns
        -------
        Page
            The page.
        """
        pages = max(1, -(-count // per_page))
        # type=int: what is no number counts as none, and the nearest page is shown.
        asked = request.args.get(word, 1, type=int)
        return cls(min(max(asked, 1), pages), pages, per_page, count, word)

    @property
    def first(self) -> int:
        """Position of the first entry."""
        return (self.number - 1) * self.per_page

    @property
    def end(self) -> int:
        """Position after the last entry."""
        return min(self.count, self.first + self.per_page)

    def address(self, number: int) -> str:
        """Return the address of another page of the same list."""
        return "?" + urlencode({**request.args.to_dict(), self.word: number})
