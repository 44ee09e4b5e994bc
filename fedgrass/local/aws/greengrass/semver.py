"""Semantic versions and the npm-style requirements that Greengrass recipes use.

Sources: semver.org 2.0.0; "Component dependencies" in the Greengrass developer guide, which names npm's syntax.

Not a library: python-semver has no ranges, and semantic-version 2.10 refuses some that npm takes and recipes have, such as
``>=1.0.0<2.0.0``, ``>= 1.0.0`` and ``^v1.2.3``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import total_ordering

from fedgrass.errors import ConfigurationError

_VERSION = re.compile(
    r"v?(?P<major>0|[1-9]\d*)\.(?P<minor>0|[1-9]\d*)\.(?P<patch>0|[1-9]\d*)"
    r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"
)
_PARTIAL = re.compile(
    r"(?P<op>\^|~|>=|<=|>|<|=)?\s*v?(?P<major>\d+|[xX*])(?:\.(?P<minor>\d+|[xX*]))?(?:\.(?P<patch>\d+|[xX*]))?"
    r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?"
)
# npm's hyphen range: spaces around it, or it would be a pre-release.
_HYPHEN = re.compile(r"(\S+)\s+-\s+(\S+)")


@total_ordering
@dataclass(frozen=True)
class Version:
    """A semantic version; build metadata do not count."""

    major: int
    minor: int
    patch: int
    pre: tuple[int | str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse ``text``.

        Raises
        ------
        ConfigurationError
            If it is not ``major.minor.patch`` with optional pre-release and build parts.
        """
        match = _VERSION.fullmatch(text)
        if match is None:
            raise ConfigurationError(f"{text!r} is not a semantic version: expected major.minor.patch, as 1.0.0.")
        return cls(int(match["major"]), int(match["minor"]), int(match["patch"]), _identifiers(match["pre"]))

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[object, ...]:
        # A pre-release comes before its release; numeric identifiers before alphanumeric ones
        pre = tuple((0, part, "") if isinstance(part, int) else (1, 0, part) for part in self.pre)
        return (self.major, self.minor, self.patch, not self.pre, pre)


def _identifiers(text: str | None) -> tuple[int | str, ...]:
    return tuple(int(part) if part.isdecimal() else part for part in text.split(".")) if text else ()


Test = Callable[[Version], bool]


@dataclass(frozen=True)
class Requirement:
    """A range of versions, such as ``^1.2.0``, ``>=1.0.0 <2.0.0``, ``~1.2`` or ``1.0.0``."""

    text: str
    alternatives: tuple[tuple[Test, ...], ...]
    pre_releases: frozenset[tuple[int, int, int]]

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Parse ``text``.

        Raises
        ------
        ConfigurationError
            If a part of it is not a comparison that npm knows.
        """
        # npm lets a pre-release through only where the range itself names one of the same three numbers.
        named: set[tuple[int, int, int]] = set()
        alternatives = tuple(tuple(_tests(part.strip(), named)) for part in text.split("||"))
        return cls(text, alternatives, frozenset(named))

    def allows(self, version: Version) -> bool:
        """Tell whether ``version`` is in the range; a pre-release only if the range names one of the same version."""
        if version.pre and (version.major, version.minor, version.patch) not in self.pre_releases:
            return False
        return any(all(test(version) for test in tests) for tests in self.alternatives)


def newest(versions: Iterable[str], requirements: Iterable[str]) -> str | None:
    """Return the newest of ``versions`` that every requirement allows, if there is one."""
    parsed = [Requirement.parse(text) for text in requirements]
    allowed = [text for text in versions if all(one.allows(Version.parse(text)) for one in parsed)]
    return max(allowed, key=Version.parse, default=None)


def _tests(text: str, named: set[tuple[int, int, int]]) -> list[Test]:
    text = _HYPHEN.sub(r">=\1 <=\2", text)
    tests: list[Test] = []
    position = 0
    while position < len(text):
        match = _PARTIAL.match(text, position)
        if match is None:
            raise ConfigurationError(
                f"{text!r} is not a version requirement: expected comparisons such as >=1.0.0 <2.0.0, ^1.2.0 or ~1.2."
            )
        tests += _comparison(match, named)
        position = match.end()
        # Comparisons may follow each other with spaces or without: >=1.0.0<2.0.0.
        position += len(text[position:]) - len(text[position:].lstrip())
    return tests


def _comparison(match: re.Match[str], named: set[tuple[int, int, int]]) -> list[Test]:
    given = [match["major"], match["minor"], match["patch"]]
    numbers = [int(part) for part in given if part is not None and part.isdecimal()]
    # How many numbers were written before the first x or the end; what follows an x counts for nothing.
    precision = next((i for i, part in enumerate(given) if part is None or not part.isdecimal()), 3)
    numbers = numbers[:precision]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    low = Version(major, minor, patch, _identifiers(match["pre"]))
    if low.pre:
        named.add((low.major, low.minor, low.patch))
    after = _bump(low, precision - 1)  # the first version beyond what was written
    match match["op"]:
        case ">=":
            return [lambda v: v >= low]
        case ">":
            return [lambda v: v > low] if precision == 3 else [lambda v: v >= after and precision > 0]
        case "<":
            return [lambda v: v < low]
        case "<=":
            return [lambda v: v <= low] if precision == 3 else [lambda v: v < after or precision == 0]
        case "^":
            # The caret keeps the leftmost number that is not 0: ^0.2.3 is below 0.3.0 (npm, "Caret Ranges").
            first = next((i for i, number in enumerate(numbers) if number), max(len(numbers) - 1, 0))
            top = _bump(low, first)
        case "~":
            # The tilde keeps the minor version if one was written, else the major one.
            top = _bump(low, min(1, precision - 1))
        case _ if precision == 3:
            return [lambda v: v == low]
        case _:
            top = after
    return [] if precision == 0 else [lambda v: v >= low, lambda v: v < top]


def _bump(version: Version, index: int) -> Version:
    if index <= 0:
        return Version(version.major + 1, 0, 0)
    if index == 1:
        return Version(version.major, version.minor + 1, 0)
    return Version(version.major, version.minor, version.patch + 1)
