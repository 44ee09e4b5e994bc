import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.local.aws.greengrass.semver import Requirement, Version, newest

numbers = st.integers(0, 4)
versions = st.builds(Version, numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("requirement", "inside", "outside"),
    [
        ("1.2.3", ["1.2.3"], ["1.2.4", "1.2.2"]),
        ("=1.2.3", ["1.2.3"], ["1.2.4"]),
        ("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^1", ["1.0.0", "1.9.9"], ["0.9.9", "2.0.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0"]),
        ("~1.2", ["1.2.0", "1.2.9"], ["1.3.0", "1.1.9"]),
        ("~1", ["1.0.0", "1.9.9"], ["2.0.0"]),
        (">=1.0.0 <2.0.0", ["1.0.0", "1.99.0"], ["0.9.9", "2.0.0"]),
        (">=1.0.0<2.0.0", ["1.5.0"], ["2.0.0"]),
        (">1.2", ["1.3.0"], ["1.2.9"]),
        ("<=1.2", ["1.2.9"], ["1.3.0"]),
        ("<=1.2.0", ["1.2.0"], ["1.2.1"]),
        ("*", ["0.0.1", "9.9.9"], []),
        ("", ["0.0.1"], []),
        ("1.x", ["1.5.0"], ["2.0.0"]),
        ("1.2", ["1.2.7"], ["1.3.0"]),
        ("1.0.0 - 1.2.0", ["1.0.0", "1.2.0"], ["1.2.1"]),
        ("^1.0.0 || ^3.0.0", ["1.5.0", "3.5.0"], ["2.0.0"]),
    ],
)
def test_requirements_read_as_npm_has_them(requirement: str, inside: list[str], outside: list[str]) -> None:
    parsed = Requirement.parse(requirement)
    assert [text for text in inside if not parsed.allows(Version.parse(text))] == []
    assert [text for text in outside if parsed.allows(Version.parse(text))] == []


@pytest.mark.parametrize("requirement", ["latest", ">=", "1.0.0 and 2.0.0", "^^1.0.0"])
def test_what_is_no_requirement_is_refused(requirement: str) -> None:
    with pytest.raises(ConfigurationError, match="not a version requirement"):
        Requirement.parse(requirement)


@pytest.mark.parametrize("text", ["1", "1.0", "01.0.0", "1.0.0.0", "a.b.c", ""])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a semantic version"):
        Version.parse(text)


def test_pre_releases_come_before_their_release_in_the_order_of_the_specification() -> None:
    texts = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0"]
    assert sorted(map(Version.parse, texts[::-1])) == [Version.parse(text) for text in texts]


def test_a_pre_release_is_chosen_only_if_the_requirement_names_one_of_its_version() -> None:
    assert not Requirement.parse("^1.0.0").allows(Version.parse("1.1.0-alpha"))
    assert Requirement.parse(">=1.1.0-alpha").allows(Version.parse("1.1.0-beta"))


@given(versions, versions)
def test_a_caret_range_is_from_the_version_to_the_next_change_of_its_first_digit(low: Version, other: Version) -> None:
    text = f"{low.major}.{low.minor}.{low.patch}"
    first = next((index for index, number in enumerate([low.major, low.minor, low.patch]) if number), 2)
    same = (low.major, low.minor, low.patch)[: first + 1] == (other.major, other.minor, other.patch)[: first + 1]
    assert Requirement.parse(f"^{text}").allows(other) == (other >= low and same)


@given(st.lists(versions, max_size=6), versions, versions)
def test_the_newest_version_of_a_range_is_the_greatest_one_in_it(
    there: list[Version], low: Version, high: Version
) -> None:
    def text(version: Version) -> str:
        return f"{version.major}.{version.minor}.{version.patch}"

    found = newest([text(version) for version in there], [f">={text(low)}", f"<{text(high)}"])
    inside = [version for version in there if low <= version < high]
    assert found == (text(max(inside)) if inside else None)
