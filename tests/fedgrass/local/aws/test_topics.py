import pytest

from fedgrass.local.aws.topics import is_wildcard, matches


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("a/b", "a/b"),
        ("a/+", "a/b"),
        ("+/b", "a/b"),
        ("a/#", "a/b/c"),
        ("a/#", "a"),
        ("#", "a/b"),
        ("+/+", "/b"),
        ("$aws/#", "$aws/things/x"),
    ],
)
def test_a_filter_matches_its_topics(topic_filter: str, topic: str) -> None:
    assert matches(topic_filter, topic)


@pytest.mark.parametrize(
    ("topic_filter", "topic"),
    [
        ("a/b", "a/b/c"),
        ("a/+", "a"),
        ("a/+", "a/b/c"),
        ("a/b", "A/b"),
        ("#", "$aws/things/x"),
        ("+/things", "$aws/things"),
    ],
)
def test_a_filter_leaves_out_other_topics(topic_filter: str, topic: str) -> None:
    assert not matches(topic_filter, topic)


def test_wildcards_are_recognised() -> None:
    assert is_wildcard("a/+/b")
    assert is_wildcard("a/#")
    assert not is_wildcard("a/b")
