"""A person's release or roll-back of a version of which an object is missing: nothing is changed, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.cloud.aggregator.manual_release import release, roll_back
from fedgrass.errors import FedgrassError
from fedgrass.protocol.names import model_prefix, report_prefix
from fedgrass.protocol.tables import load_round, load_state
from tests.fedgrass.cloud.aggregator.conftest import FLEET, ROUND
from tests.fedgrass.cloud.aggregator.test_manual_release import HELD, Mill
from tests.fedgrass.cloud.console.conftest import fresh_fleet


@pytest.fixture
def mill(digits: Bundle, tmp_path: Path) -> Iterator[Mill]:
    with fresh_fleet() as fleet:
        (tmp_path / "scratch").mkdir()
        yield Mill(fleet, digits, tmp_path)


def objects(mill: Mill, prefix: str) -> dict[str, bytes]:
    s3, bucket = mill.account.s3, mill.account.stack.bucket
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {one["Key"]: s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed}


def everything(mill: Mill) -> Any:
    """What a release changes."""
    state = load_state(mill.clients.rounds, FLEET)
    return state, load_round(mill.clients.rounds, FLEET, ROUND), len(mill.fleet.greengrass.deployments)


def refuses_without(mill: Mill, needed: dict[str, bytes], act: Callable[[], Any]) -> None:
    """Take each object away in turn, cut it short, and put it back."""
    s3, bucket = mill.account.s3, mill.account.stack.bucket
    before = everything(mill)
    for key, content in needed.items():
        metadata = s3.head_object(Bucket=bucket, Key=key)["Metadata"]
        for left in (None, content[: len(content) // 2]):
            if left is None:
                s3.delete_object(Bucket=bucket, Key=key)
            else:
                s3.put_object(Bucket=bucket, Key=key, Body=left)
            with pytest.raises(FedgrassError, match=r"model 1\.\d\.0|models/mill/1\.\d\.0/"):
                act()
            assert everything(mill) == before, key
        s3.put_object(Bucket=bucket, Key=key, Body=content, Metadata=metadata)


def needed_of(mill: Mill, version: str) -> dict[str, bytes]:
    found = objects(mill, model_prefix(FLEET, version))
    names = {key.rpartition("/")[2] for key in found}
    assert MANIFEST in names
    assert len(names) >= 4, names
    return found


@pytest.mark.parametrize("version", ["1.0.0", HELD])
def test_a_roll_back_changes_nothing_without_any_one_of_the_version_s_objects(mill: Mill, version: str) -> None:
    assert mill.run().outcome == "released"
    if version == HELD:
        roll_back(mill.account, "1.0.0")
    refuses_without(mill, needed_of(mill, version), lambda: roll_back(mill.account, version))
    roll_back(mill.account, version)
    assert mill.current == version


def test_a_release_of_an_advanced_model_changes_nothing_without_any_one_of_its_objects(mill: Mill) -> None:
    assert mill.run(release_every=2).outcome == "advanced"
    refuses_without(mill, needed_of(mill, HELD), lambda: release(mill.account, HELD))
    release(mill.account, HELD)
    assert mill.deployed["com.fedgrass.GlobalModel"] == {"componentVersion": HELD}


def test_a_release_of_a_held_model_changes_nothing_without_its_parameters_or_its_base(mill: Mill) -> None:
    assert mill.run(release="never").outcome == "held"
    kept = objects(mill, report_prefix(FLEET, ROUND) + "parameters")
    assert len(kept) == 1
    refuses_without(mill, kept | needed_of(mill, "1.0.0"), lambda: release(mill.account, HELD))
    release(mill.account, HELD)
    assert mill.current == HELD
