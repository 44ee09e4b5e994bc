"""What a round leaves out for devices that only train and send: to the byte what each of them does by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.lanes import LANES
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.data.digits import digits_bundle
from fedgrass.protocol.messages import Announcement, Base, Cohort, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.simulation import plain
from fedgrass.simulation.examples import prepare
from fedgrass.simulation.model import in_folder
from fedgrass.simulation.plain import PlainDevices
from fedgrass.simulation.population import FLEET, Assignments, thing_name
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.updates import VirtualUpdates
from fedgrass.simulation.worker import Done, Folders, LaneTotals, Setup, Surveyed, Task, Worker
from fedgrass.update.decoded import DecodedUpdate
from tests.fedgrass.simulation.conftest import fleet

DEVICES = 9
LATE = (1, 6)


@dataclass
class Leader:
    """The other end of a worker's pipe: tells it that all others found nothing."""

    told: list[Any] = field(default_factory=list)

    def send(self, message: Any) -> None:
        self.told.append(message)

    def recv(self) -> Any:
        assert isinstance(self.told[-1], Surveyed)
        return self.told[-1].found


def round_of(folder: Path, settings: dict[str, Any], **options: Any) -> tuple[list[Any], dict[str, bytes]]:
    """One round of a worker: what it tells the leading process, and the files that it keeps."""
    scratch, kept = folder / "scratch", folder / "kept"
    scratch.mkdir(parents=True)
    kept.mkdir()
    bundle = Bundle.open(digits_bundle())
    digests = {
        "parameters_sha256": bundle.manifest.parameters_sha256,
        "graph_sha256": bundle.manifest.graph_sha256,
    }
    chosen = {"devices": DEVICES, "cohort": DEVICES, "examples": 0, **options}
    simulation = Simulation.checked({**digests, "fleet": fleet(settings), **chosen})
    prepare(simulation, bundle.manifest, scratch)
    base = in_folder(bundle.manifest, bundle.parameters(), scratch, version="1.0.0")
    now = datetime(2000, 1, 1, tzinfo=timezone.utc)
    announced = Announcement(
        fleet=FLEET,
        round=1,
        opened_at=now,
        deadline=now + timedelta(hours=1),
        base=Base.of(base.manifest, FLEET),
        cohort=Cohort(salt="0" * 16),
        fit=simulation.fleet.announced_fit,
        update=simulation.fleet.announced_update,
        upload=Upload(bucket=FLEET, prefix=update_prefix(FLEET, 1)),
    )
    expected = Expected(base.manifest.parameters_sha256, base.manifest.graph_sha256, FLEET, 1, announced.cohort)
    in_time = [device for device in range(DEVICES) if device not in LATE]
    leader = Leader()
    worker = Worker(leader, Setup(simulation, bundle.folder, scratch))  # type: ignore[arg-type]
    worker.run(Task(announced, expected, Assignments(in_time, LATE), range(LANES), Folders(scratch, kept)))
    return [bare(told) for told in leader.told], {path.name: path.read_bytes() for path in kept.glob("late-*")}


def bare(told: Any) -> Any:
    """A message in parts that compare by their content."""
    if isinstance(told, LaneTotals):
        return [(one.lane, None if one.total is None else one.total.tobytes(), one.found) for one in told.some]
    if isinstance(told, Done):
        return sorted(told.failures.items()), None if told.updates is None else files(told.updates)
    return told


def files(updates: VirtualUpdates) -> list[tuple[Any, bytes]]:
    found = []
    for reference in sorted(updates.list(), key=lambda one: one.key):
        with updates.open(reference) as stream:
            content = stream.to_bytes() if isinstance(stream, DecodedUpdate) else stream.read()
        assert len(content) == reference.bytes
        found.append((reference, content))
    return found


@pytest.mark.parametrize(
    ("settings", "options", "together"),
    [
        ({}, {}, DEVICES),
        # Fewer examples than a batch has; a proximal term and clipping, which are another graph's.
        ({"fit": {"proximal_mu": 0.1, "gradient_clip_norm": 0.5}}, {"examples": 5}, DEVICES),
        ({"strategy": {"name": "median"}}, {"examples": 33}, DEVICES),
        # Those with many examples diverge.
        (
            {"fit": {"learning_rate": 100.0, "proximal_mu": 1000.0, "epochs": 1}, "strategy": {"name": "median"}},
            {"partition": "dirichlet:0.1"},
            None,
        ),
        ({}, {"attack": "sign_flip:0.4"}, DEVICES - 4),
        ({"update": {"codec": "int8"}}, {}, 0),
        ({"update": {"clip_norm": 0.5}}, {}, 0),
        ({"fit": {"class_weight": "balanced"}}, {"partition": "iid"}, 0),
        ({"fit": {"max_examples": 20}}, {}, 0),
    ],
)
def test_devices_trained_together_give_the_bytes_of_devices_trained_by_themselves(
    settings: dict[str, Any],
    options: dict[str, Any],
    together: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[int] = []

    class Counting(PlainDevices):
        def train(self, devices: Any) -> Any:
            for device, update in super().train(devices):
                trained.append(device)
                yield device, update

    monkeypatch.setattr("fedgrass.simulation.worker.PlainDevices", Counting)
    quick = round_of(tmp_path / "together", settings, **options)
    # So that neither way is compared with itself.
    assert together is None or len(trained) == together
    assert together is not None or 0 < len(trained) < DEVICES
    monkeypatch.setattr(plain, "_is_plain", lambda *_: False)
    assert quick == round_of(tmp_path / "alone", settings, **options)
    late = {f"late-000001-{thing_name(device)}" for device in LATE}
    failed = dict(quick[0][-1][0])
    assert set(quick[1]) == {name for name in late if name[len("late-000001-") :] not in failed}


def test_a_decoded_update_is_read_as_its_file_is(tmp_path: Path) -> None:
    told, _ = round_of(tmp_path, {"strategy": {"name": "median"}})
    from fedgrass.update.reader import UpdateReader

    bundle = Bundle.open(digits_bundle())
    size = sum(parameter.size for parameter in bundle.manifest.parameters)
    for reference, content in told[-1][1]:
        (tmp_path / "update").write_bytes(content)
        found = np.empty(size, np.float32)
        with (tmp_path / "update").open("rb") as stream:
            reader = UpdateReader(stream, file_bytes=reference.bytes, parameters=bundle.manifest.parameters)
            reader.read_whole(found)
        assert reader.header.thing == reference.thing
        assert np.isfinite(found).all()
        assert np.abs(found).max() > 0
