"""Messages survive the way, stay within every nucleus's bound, and are refused by name when they are wrong."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgrass.errors import MessageError
from fedgrass.protocol.device_messages import Heartbeat
from fedgrass.protocol.message import MAX_MESSAGE_BYTES, as_reason
from fedgrass.protocol.messages import Announcement, Base, Cohort, ModelNotice, UpdateNotice, Upload

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def announcement() -> Announcement:
    base = Base(version="1.0.0", parameters_key="k" * 300, parameters_sha256="a" * 64, graph_sha256="b" * 64)
    return Announcement(
        fleet="f" * 40,
        round=7,
        opened_at=NOW,
        deadline=NOW,
        base=base,
        cohort=Cohort(salt="s" * 64),
        upload=Upload(bucket="b" * 63, prefix="p" * 300),
    )


def test_an_announcement_survives_the_way() -> None:
    assert Announcement.decode(announcement().encode()) == announcement()


@given(
    reason=st.text(max_size=500),
    metrics=st.dictionaries(st.text(max_size=40), st.floats(allow_nan=False, allow_infinity=False), max_size=16),
)
def test_a_notice_within_its_fields_bounds_either_fits_or_says_so(reason: str, metrics: dict[str, float]) -> None:
    notice = ModelNotice(fleet="f", thing="t", version="1.2.3", outcome="refused", reason=reason, metrics=metrics)
    size = len(notice.model_dump_json(by_alias=True, exclude_none=True).encode())
    if size > MAX_MESSAGE_BYTES:
        with pytest.raises(MessageError, match=str(MAX_MESSAGE_BYTES)):
            notice.encode()
    else:
        assert ModelNotice.decode(notice.encode()) == notice


def test_fields_of_a_later_release_are_ignored() -> None:
    document = json.loads(announcement().encode()) | {"invented_later": [1]}
    assert Announcement.decode(json.dumps(document).encode()) == announcement()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": 2}, "schema"),
        ({"fleet": "a/b"}, "fleet"),
        ({"round": 0}, "round"),
        ({"round": 1.5}, "round"),
        ({"opened_at": "2026-01-01T00:00:00"}, "opened_at"),
        ({"upload": {"bucket": "b"}}, "upload"),
        ({"fit": {"epochs": 0}}, "fit.epochs"),
        ({"fit": {"learning_rate": "NaN"}}, "fit.learning_rate"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str) -> None:
    document = json.loads(announcement().encode()) | change
    with pytest.raises(MessageError, match=field):
        Announcement.decode(json.dumps(document).encode())


@given(payload=st.binary(max_size=6000))
def test_any_bytes_are_a_message_or_a_message_error(payload: bytes) -> None:
    for kind in (Announcement, Heartbeat, UpdateNotice, ModelNotice):
        with pytest.raises(MessageError):
            kind.decode(payload)


_NOTICE: dict[str, Any] = {"fleet": "f", "thing": "t", "version": "1.2.3", "outcome": "refused"}


@given(st.text(max_size=700), st.integers(0, 500))
def test_a_reason_is_bounded_in_bytes_as_a_message_has_it(text: str, most: int) -> None:
    kept = as_reason(text, most)
    assert text.startswith(kept)
    taken = len(ModelNotice(**_NOTICE, reason=kept).encode()) - len(ModelNotice(**_NOTICE, reason="").encode())
    assert taken <= most
    assert kept == text or taken > most - 6


def test_bytes_that_are_no_text_become_question_marks() -> None:
    assert as_reason("f\udcff.npz") == "f?.npz"
