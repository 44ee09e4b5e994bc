from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass.errors import ConfigurationError
from fedgrass.local.core_device.configuration import DEFAULTS_TIME, ConfigurationStore, OutdatedError, parse_pointer

C = "com.example.C"


@pytest.fixture
def store(tmp_path: Path) -> ConfigurationStore:
    return ConfigurationStore(tmp_path / "effective.json")


def test_defaults_fill_gaps_but_never_undo_a_setting(store: ConfigurationStore) -> None:
    store.merge(C, {"a": 1, "nested": {"b": 2}}, DEFAULTS_TIME)
    store.merge(C, {"a": 10}, 1000.0)
    store.merge(C, {"a": 5, "nested": {"b": 3, "c": 4}}, DEFAULTS_TIME)  # the next version's defaults
    assert store.get(C) == {"a": 10, "nested": {"b": 3, "c": 4}}


def test_a_reset_returns_a_setting_to_the_default(store: ConfigurationStore) -> None:
    store.merge(C, {"a": 10, "b": 1}, 1000.0)
    store.reset(C, ["/a"])
    store.merge(C, {"a": 5}, DEFAULTS_TIME)
    assert store.get(C) == {"a": 5, "b": 1}


def test_the_empty_pointer_resets_everything(store: ConfigurationStore) -> None:
    store.merge(C, {"a": {"b": 1}}, 1000.0)
    store.reset(C, [""])
    assert store.get(C) == {}


def test_an_outdated_update_changes_nothing(store: ConfigurationStore) -> None:
    store.merge(C, {"a": 1}, 2000.0)
    with pytest.raises(OutdatedError):
        store.merge(C, {"a": 2, "b": 3}, 1000.0, strict=True)
    assert store.get(C) == {"a": 1}


def test_lists_are_replaced_as_a_whole(store: ConfigurationStore) -> None:
    store.merge(C, {"l": [1, 2, {"x": 1}]}, 1.0)
    store.merge(C, {"l": [3]}, 2.0)
    assert store.get(C) == {"l": [3]}


def test_a_map_takes_the_place_of_a_leaf_and_a_leaf_that_of_a_map(store: ConfigurationStore) -> None:
    store.merge(C, {"a": 1}, 1.0)
    store.merge(C, {"a": {"b": 2}}, 2.0)
    assert store.get(C) == {"a": {"b": 2}}
    store.merge(C, {"a": 3}, 3.0)
    assert store.get(C) == {"a": 3}


def test_configuration_survives_a_restart(tmp_path: Path, store: ConfigurationStore) -> None:
    store.merge(C, {"a": {"b": 1}}, 5000.0)
    again = ConfigurationStore(tmp_path / "effective.json")
    assert again.get(C) == {"a": {"b": 1}}
    with pytest.raises(OutdatedError):
        again.merge(C, {"a": {"b": 2}}, 4000.0, strict=True)


def test_subscribers_hear_of_changes_at_and_below_their_path_only(store: ConfigurationStore) -> None:
    store.merge(C, {"a": {"b": 1}, "c": 1}, 1.0)
    heard: list[Any] = []
    subscription = store.subscribe(C, ("a",), heard.append)
    store.merge(C, {"a": {"b": 2, "d": 3}, "c": 9}, 2.0)
    store.merge(C, {"a": {"b": 2}}, 3.0)  # no change
    store.unsubscribe(subscription)
    store.merge(C, {"a": {"b": 5}}, 4.0)
    assert heard == [("a", "b"), ("a", "d")]


def test_a_restored_snapshot_is_told_to_subscribers(store: ConfigurationStore) -> None:
    store.merge(C, {"a": 1, "b": 1}, 1.0)
    snapshot = store.snapshot()
    store.merge(C, {"a": 2}, 2.0)
    heard: list[Any] = []
    store.subscribe(C, (), heard.append)
    store.restore(snapshot)
    assert store.get(C) == {"a": 1, "b": 1}
    assert heard == [("a",)]


def test_found_values_are_copies(store: ConfigurationStore) -> None:
    store.merge(C, {"l": [1]}, 1.0)
    store.find(C, ("l",)).append(2)
    assert store.find(C, ("l",)) == [1]


def test_pointers_are_unescaped() -> None:
    assert parse_pointer("/a~1b/~0c") == ("a/b", "~c")
    with pytest.raises(ConfigurationError):
        parse_pointer("a")


trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc/~"), inner, min_size=1, max_size=3),
    max_leaves=6,
)
maps = st.dictionaries(st.sampled_from("abc/~"), trees, max_size=3)


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


@settings(max_examples=60, deadline=None)
@given(maps, maps)
def test_a_newer_merge_is_a_recursive_union(tmp_path_factory: pytest.TempPathFactory, old: Any, new: Any) -> None:
    store = ConfigurationStore(tmp_path_factory.mktemp("c") / "effective.json")
    store.merge(C, old, 1.0)
    store.merge(C, new, 2.0)
    assert store.get(C) == _merged(old, new)
