"""MQTT topic filters."""

from __future__ import annotations


def is_wildcard(topic_filter: str) -> bool:
    """Tell whether ``topic_filter`` can match more than one topic."""
    return "+" in topic_filter or "#" in topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether ``topic`` matches ``topic_filter`` (MQTT 3.1.1, section 4.7).

    A filter that begins with a wildcard does not match a topic that begins with ``$``.
    """
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    levels = topic.split("/")
    parts = topic_filter.split("/")
    for index, part in enumerate(parts):
        if part == "#":
            # "#" stands for the level above too: a/# matches a (MQTT 3.1.1, 4.7.1.2).
            return index == len(parts) - 1
        if index >= len(levels) or part not in {"+", levels[index]}:
            return False
    return len(parts) == len(levels)
