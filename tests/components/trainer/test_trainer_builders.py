"""A device's builder: it comes with the model, late, changed, wrong or not trusted; the device says whether it can train."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
from fedgrass.bundle import Bundle
from fedgrass.engines.shipped import have_packages, import_from
from fedgrass.inference import write_bundle
from fedgrass.protocol.names import RUNTIME
from tests.components.trainer.place import FLEET, Place
from tests.fedgrass.edge import digits
from tests.fedgrass.engines.models import digits_bundle

CLIENT = """
import numpy as np
from of_the_operator.mark import MARK

class Client:
    def __init__(self, data):
        self.examples = len(data)

    def get_parameters(self, config):
        return [np.zeros((64, 10), np.float32), np.zeros(COLUMNS, np.float32)]

    def fit(self, weights, config):
        return [weight + MARK for weight in weights], self.examples, {"loss": 1.0, "mark": MARK}

    def evaluate(self, weights, config):
        return 1.0, self.examples, {}
"""
NAME = "operators_client:Client"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, engine="flower")
    yield made
    made.stop()
    import_from(None)
    have_packages(())


def model(folder: Path, version: str, *, mark: float, columns: int = 10) -> Bundle:
    """Make a version of a model with its code, which is two modules."""
    code = folder / "code"
    (code / "of_the_operator").mkdir(parents=True)
    (code / "operators_client.py").write_text(CLIENT.replace("COLUMNS", str(columns)))
    (code / "of_the_operator" / "mark.py").write_text(f"MARK = {mark}\n")
    zeros = {"0000": np.zeros((64, 10), np.float32), "0001": np.zeros(10, np.float32)}
    first = digits_bundle(folder / "first", "flower", zeros)
    first = add_builder(first, pack_builder(code))
    # As a round's job writes the next version: the code goes along.
    return write_bundle(first, first.parameters(), folder / "bundle", version=version)


def settings(place: Place, **more: Any) -> dict[str, Any]:
    return {**place.ipc.configurations[RUNTIME], **more}


def trained(place: Place, number: int) -> float:
    """Have the device take part in a round; returns the mark that its code leaves."""
    place.open(place.announcement(number, base=digits.base_of(place.bundle, FLEET)))
    place.settle()
    notice = place.notices[-1]
    assert (notice.round, notice.status) == (number, "uploaded"), notice.reason
    return notice.metrics["mark"]


def activate(place: Place, bundle: Bundle) -> None:
    place.bundle = bundle
    place.have_model()
    place.say_model_is_active()


def test_code_comes_with_the_model_is_trusted_by_digest_changes_with_it_and_is_rolled_back(
    place: Place, tmp_path: Path
) -> None:
    one, two = model(tmp_path / "one", "1.0.0", mark=0.5), model(tmp_path / "two", "2.0.0", mark=0.25)
    place.bundle = one
    place.have_model()
    place.start()
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert f"digest {builder_sha256(one)}, which this device does not trust" in place.statuses[-1].reason
    assert "operators_client" not in sys.modules
    trusted = {builder_sha256(one): NAME, builder_sha256(two): NAME}
    place.ipc.change(RUNTIME, settings(place, builders=trusted))
    place.until(lambda: place.statuses[-1].able, "able")
    assert trained(place, 1) == 0.5
    activate(place, two)
    assert trained(place, 2) == 0.25
    activate(place, one)  # rolled back, and its code with it
    assert trained(place, 3) == 0.5
    assert (tmp_path / "work" / "builders" / builder_sha256(two) / "of_the_operator" / "mark.py").is_file()


def test_a_builder_that_does_not_fit_or_cannot_be_imported_leaves_the_device_unable_with_its_reason(
    place: Place, tmp_path: Path
) -> None:
    wrong, good = model(tmp_path / "wrong", "1.0.0", mark=1, columns=3), model(tmp_path / "good", "2.0.0", mark=2)
    bundles = {builder_sha256(wrong): NAME, builder_sha256(good): "operators_client:Missing"}
    place.ipc.configurations[RUNTIME] |= {"builders": bundles}
    place.bundle = wrong
    place.have_model()
    place.start()
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert "'0001' is float32[3], the model has float32[10]" in place.statuses[-1].reason
    activate(place, good)
    place.until(lambda: "Missing" in place.statuses[-1].reason, "the other reason")
    assert not place.statuses[-1].able
    place.ipc.change(RUNTIME, settings(place, builders={**bundles, builder_sha256(good): NAME}))
    place.until(lambda: place.statuses[-1].able, "able")
    assert trained(place, 1) == 2


def test_a_builder_that_is_installed_late_leaves_the_device_unable_until_it_is_there(
    place: Place, tmp_path: Path
) -> None:
    later = tmp_path / "site-packages"
    place.ipc.configurations[RUNTIME] |= {"builder": "comes_late:Client", "packages": [str(later)]}
    zeros = {"0000": np.zeros((64, 10), np.float32), "0001": np.zeros(10, np.float32)}
    place.bundle = digits_bundle(tmp_path / "bundle", "flower", zeros)
    place.have_model()
    place.start()
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert f"packages: {later}: there is no such folder on this device" in place.statuses[-1].reason
    later.mkdir()
    place.now += 60
    place.trainer._count_examples()  # the loop's own clock does not run ahead
    place.until(lambda: "packages" not in place.statuses[-1].reason, "the other reason")
    assert "builder 'comes_late:Client': cannot be imported (No module named 'comes_late')" in place.statuses[-1].reason
    code = CLIENT.replace("COLUMNS", "10").replace("from of_the_operator.mark import MARK", "MARK = 4.0")
    (later / "comes_late.py").write_text(code)
    place.now += 60
    place.trainer._count_examples()  # the loop's own clock does not run ahead
    place.until(lambda: place.statuses[-1].able, "able")
    assert trained(place, 1) == 4.0


def test_a_builder_that_is_lost_is_told_after_the_round_that_it_fails(place: Place, tmp_path: Path) -> None:
    made = model(tmp_path / "one", "1.0.0", mark=0.5)
    place.ipc.configurations[RUNTIME] |= {"builders": {builder_sha256(made): NAME}}
    place.bundle = made
    place.have_model()
    place.start()
    place.until(lambda: place.statuses and place.statuses[-1].examples == 40, "counted")
    active = place.store.active()
    assert active is not None
    assert place.statuses[-1].able
    (active.folder / "builder.zip").write_bytes(b"damaged")
    place.open(place.announcement(1, base=digits.base_of(made, FLEET)))
    place.settle()
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert (place.notices[-1].status, "differs from its digest" in place.statuses[-1].reason) == ("failed", True)


def test_a_device_that_has_no_model_yet_gets_the_code_with_the_rounds_base_or_says_why_not(
    place: Place, tmp_path: Path
) -> None:
    made = model(tmp_path / "one", "1.0.0", mark=0.5)
    place.bundle = made
    for name in (*made.manifest.files, "model.json"):
        place.s3.objects[f"models/{FLEET}/1.0.0/{name}"] = made.path(name).read_bytes()
    place.start()
    place.open(place.announcement(1, base=digits.base_of(made, FLEET)))
    place.settle()
    assert place.notices[-1].status == "failed"
    place.until(lambda: not place.statuses[-1].able, "not able")
    assert "does not trust" in place.statuses[-1].reason
    place.ipc.change(RUNTIME, settings(place, builders={builder_sha256(made): NAME}))
    place.until(lambda: place.statuses[-1].able, "able")
    assert trained(place, 2) == 0.5
