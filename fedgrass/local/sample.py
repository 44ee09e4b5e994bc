"""A fleet that never was, in real tables: for looking at what shows a fleet, at any size, without training anything."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from fedgrass.account import Account
from fedgrass.protocol.device_messages import Heartbeat, TrainerStatus
from fedgrass.protocol.drift import Drift
from fedgrass.protocol.fleet_state import STATE_KEY, FleetState
from fedgrass.protocol.messages import Base, Cohort
from fedgrass.protocol.names import parameters_key, report_key, update_key
from fedgrass.protocol.profile import ProfileReference
from fedgrass.protocol.records import MODEL_SUFFIX, DeviceModel, Participation, RoundRecord, to_attribute
from fedgrass.protocol.report import Evaluation, ModelEntry, QuarantinedEntry, RoundReport, UpdateEntry
from fedgrass.protocol.run_pieces import piece_with
from fedgrass.protocol.run_settings import Run
from fedgrass.protocol.runs import run_after
from fedgrass.protocol.settings import FleetSettings

_GRAPH = "a" * 64
_PARTS = 1000  # devices whose part in the last round is there
ROUNDS_OF_AN_EXECUTION = 500


class Sample:
    """Devices and rounds of one fleet; the same seed gives the same ones.

    Parameters
    ----------
    now
        The last heartbeats are from the minute before it.
    run
        Rounds of each run; 0: each round stands alone, as those of earlier releases do.
    profile
        The round whose profile the devices compare their live data with; 0: none.
    """

    def __init__(
        self,
        account: Account,
        *,
        devices: int,
        rounds: int,
        now: datetime,
        seed: int = 0,
        run: int = 0,
        profile: int = 0,
    ) -> None:
        self._account = account
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._now = now
        self._rounds = rounds
        self._run = run
        self._profile = profile
        self.things = [f"press-{number:05d}" for number in range(1, devices + 1)]
        self.version = f"1.{rounds}.0"

    def write(self) -> None:
        """Put everything in its place."""
        with self._account.devices_table.batch_writer() as batch:
            for item in self._device_items():
                batch.put_item(Item=item)
        with self._account.rounds_table.batch_writer() as batch:
            before: RoundRecord | None = None
            for number in range(1, self._rounds + 1):
                record = before = self.record(number, before)
                batch.put_item(Item=record.to_item())
                if record.run is not None:
                    done = record.run.standing.done
                    batch.put_item(Item=piece_with(record, done % ROUNDS_OF_AN_EXECUTION).to_item())
            for thing in self.things[:_PARTS]:
                batch.put_item(Item=self._part(thing).to_item())
            state = FleetState(last=self._rounds, model=_base(self._account.fleet, self.version), profile=self._named())
            batch.put_item(Item={"fleet": self._account.fleet, "key": STATE_KEY, **state.to_item()})
        bucket = self._account.stack.bucket
        for number in range(self._rounds + 1):
            key = f"models/{self._account.fleet}/1.{number}.0/model.json"
            self._account.s3.put_object(Bucket=bucket, Key=key, Body=b"{}")
        key = report_key(self._account.fleet, self._rounds)
        self._account.s3.put_object(Bucket=bucket, Key=key, Body=self._report().to_json())

    def record(self, number: int, before: RoundRecord | None = None) -> RoundRecord:
        """Return a closed, released round; that of a run goes on from the round before."""
        run, settings, execution = None, FleetSettings(), number
        if self._run:
            run, settings, execution = self._of_run(number, before)
        opened = self._now - timedelta(hours=self._rounds - number + 1)
        collected, aggregated = opened + timedelta(minutes=12), opened + timedelta(minutes=13)
        asked = len(self.things)
        return RoundRecord(
            fleet=self._account.fleet,
            round=number,
            phase="closed",
            outcome="released",
            reason="accuracy is not lower than the base's",
            execution=f"{self._account.stack.state_machine_arn.replace(':stateMachine:', ':execution:')}:{execution}",
            run=run,
            settings=settings,
            base=_base(self._account.fleet, f"1.{number - 1}.0"),
            version=f"1.{number}.0",
            cohort=Cohort(salt="s"),
            alive=asked,
            asked=asked,
            quorum=max(1, asked),
            opened_at=opened,
            deadline=opened + timedelta(hours=1),
            collected_at=collected,
            aggregated_at=aggregated,
            closed_at=aggregated + timedelta(minutes=2),
            uploaded=asked,
            bytes_uploaded=asked * 40_000,
            last_upload_at=int(collected.timestamp() * 1000),
            active=asked,
            last_model_at=int((aggregated + timedelta(minutes=1)).timestamp() * 1000),
            participants=max(0, asked - 2),
            quarantined=min(2, asked),
            accuracy=round(0.97 - 0.4 * math.exp(-number / 8) + self._random.uniform(-0.004, 0.004), 4),
            loss=round(0.12 + 1.6 * math.exp(-number / 6) + self._random.uniform(-0.01, 0.01), 4),
        )

    def _of_run(self, number: int, before: RoundRecord | None) -> tuple[Run, FleetSettings, int]:
        done = (number - 1) % self._run
        run = run_after(before) if before is not None and done else None
        if run is None:
            run = Run(first=number - done, started_at=self._now - timedelta(hours=self._rounds - number + 1))
        curve = {"kind": "exponential", "rounds": max(1, self._run // 4), "factor": 0.5}
        settings = FleetSettings().overridden(
            {
                "rounds": self._run,
                "fit": {"learning_rate": 0.1, "epochs": 4},
                "until": {"target": 0.975, "patience": 20, "hours": 2 * self._run},
                "schedule": {"learning_rate": curve},
            }
        )
        return run, settings.at_round(number, run.first), number - done % ROUNDS_OF_AN_EXECUTION

    def _device_items(self) -> Iterator[dict[str, Any]]:
        now_ms = int(self._now.timestamp() * 1000)
        for position, thing in enumerate(self.things):
            # By position and not by chance, so that every size of fleet has some of each.
            silent, unable = position % 17 == 5, position % 11 == 3
            beat = Heartbeat(
                fleet=self._account.fleet,
                thing=thing,
                sent_at=self._now,
                interval_seconds=60,
                able=not unable,
                reason="memory: 92 % used, the limit is 85 %" if unable else "",
                cpu_percent=round(self._random.uniform(3, 60)),
                load=round(self._random.uniform(0, 2), 2),
                memory_percent=92 if unable else round(self._random.uniform(20, 80)),
                disk_free_bytes=int(self._random.uniform(2e9, 2e10)),
                examples=int(self._random.uniform(200, 4000)),
                drift=self._drift(position),
                model_version=self.version if position % 13 else f"1.{max(0, self._rounds - 1)}.0",
                trainer=TrainerStatus(round=self._rounds or None, component_version="1.0.0"),
                components={"com.fedgrass.Trainer": "1.0.0", "com.fedgrass.ModelDeployer": "1.0.0"},
            )
            received = now_ms - (1_200_000 if silent else int(self._random.uniform(0, 50_000)))
            yield to_attribute({**json.loads(beat.encode()), "received_at": received})
            yield DeviceModel(
                fleet=self._account.fleet,
                thing=thing + MODEL_SUFFIX,
                version=self.version,
                outcome="active" if position % 13 else "refused",
                reason="" if position % 13 else "accuracy 0.81 on this device's 60 examples, 1.0 has 0.95",
                active_version=beat.model_version,
                received_at=received,
            ).to_item()

    def _drift(self, position: int) -> Drift | None:
        if not self._profile or position % 7 == 6:
            return None
        # By position, too: one in five is far away, and one in nine knows only the profile before.
        return Drift(
            profile=max(1, self._profile - (position % 9 == 4)),
            rows=1000,
            inputs=1.5 if position % 5 == 2 else 0.04,
            inputs_change=0.02,
            scores=0.1,
            scores_change=0.01,
        )

    def _named(self) -> ProfileReference | None:
        if not self._profile:
            return None
        key = f"profiles/{self._account.fleet}/{self._profile:06d}/profile.json"
        return ProfileReference(round=self._profile, key=key, sha256="3" * 64, bytes=1, graph_sha256=_GRAPH)

    def _part(self, thing: str) -> Participation:
        return Participation(
            fleet=self._account.fleet,
            round=max(1, self._rounds),
            thing=thing,
            status="uploaded",
            asked=True,
            object_key=update_key(self._account.fleet, max(1, self._rounds), thing),
            bytes=40_000,
            num_examples=int(self._random.uniform(200, 4000)),
            metrics={"loss": 0.2},
            seconds_train=self._random.uniform(5, 90),
            received_at=int(self._now.timestamp() * 1000),
            model_outcome="active",
        )

    def _report(self) -> RoundReport:
        fleet, number = self._account.fleet, self._rounds
        bad, good = self.things[:2], self.things[2:]
        record = self.record(number)
        return RoundReport(
            fleet=fleet,
            round=number,
            outcome="released",
            reason=record.reason,
            strategy="fedavg",
            started_at=self._now,
            finished_at=self._now,
            base=ModelEntry.of(record.base),
            model=ModelEntry(version=record.version, parameters_sha256="2" * 64, graph_sha256=_GRAPH),
            updates=tuple(
                UpdateEntry(
                    thing=thing,
                    key=update_key(fleet, number, thing),
                    etag="e",
                    bytes=40_000,
                    num_examples=500,
                    weight=1 / max(1, len(good)),
                    norm=self._random.uniform(0.2, 0.6),
                    metrics={"loss": self._random.uniform(0.1, 0.4)},
                )
                for thing in good
            ),
            quarantined=tuple(
                QuarantinedEntry(
                    thing=thing,
                    key=update_key(fleet, number, thing),
                    bytes=40_000,
                    reason="not_finite",
                    detail="dense/kernel: has values that are not finite",
                )
                for thing in bad
            ),
            evaluation=Evaluation(loss=record.loss or 0, accuracy=record.accuracy, examples=1000),
            bytes_read=len(self.things) * 40_000,
            seconds={"list": 0.4, "aggregate": 11.2, "evaluate": 1.3, "release": 4.0},
        )


def _base(fleet: str, version: str) -> Base:
    return Base(
        version=version,
        parameters_key=parameters_key(fleet, version),
        parameters_sha256="0" * 64,
        graph_sha256=_GRAPH,
    )


def now() -> datetime:
    """Return the time, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)
