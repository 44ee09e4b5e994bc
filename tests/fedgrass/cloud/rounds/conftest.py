from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto import mock_aws

from tests.fedgrass.cloud.rounds.harness import Fleet, FleetFactory


@pytest.fixture
def make_fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetFactory]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield Fleet


@pytest.fixture
def fleet(make_fleet: FleetFactory) -> Fleet:
    """Three devices that are fit."""
    fleet: Fleet = make_fleet()
    fleet.heartbeats("a", "b", "c")
    return fleet
