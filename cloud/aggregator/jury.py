"""The devices' word on a new model before it is released: they evaluate it, and its base, on the examples that each keeps back.

The job announces the evaluation itself and waits: in the state machine it would take a second job to release. The announcement
has the round's number and cohort and a later time, so devices take it for what it is, another task. Their notices are counted in
the round's record (`cloud.rounds.judging`), each device once, so that a job that is run again goes on with what was said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from statistics import median_low
from typing import Any

from fedgrass.protocol.messages import Announcement, Base, Upload
from fedgrass.protocol.names import round_topic, update_prefix
from fedgrass.protocol.records import Participation, RoundRecord, round_key
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.settings import Checks
from fedgrass.protocol.tables import Table, load_round

_LOOK_SECONDS = 2.0


class Jury:
    """A round's cohort, asked which of two models is better.

    Parameters
    ----------
    rounds, iot_data, bucket
        The table of rounds, the client that publishes, and the name of the fleet's bucket.
    """

    def __init__(
        self,
        record: RoundRecord,
        rounds: Table,
        iot_data: Any,
        bucket: str,
        *,
        now: Callable[[], datetime],
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._rounds = rounds
        self._iot_data = iot_data
        self._bucket = bucket
        self._now = now
        self._pause = pause
        self._clock = clock

    def hear(self, model: Base) -> RoundRecord:
        """Ask for the model and the round's base to be evaluated; returns the record with what was said in time."""
        record = self._load()
        if enough(record):
            return record
        self._put(announced=True, judging=True)  # before it is: whoever closes the round withdraws what is announced
        self._publish(self._announcement(model).encode())
        deadline = self._clock() + record.settings.gate.devices_seconds
        try:
            while not enough(record := self._load()) and record.phase == "aggregating" and self._clock() < deadline:
                self._pause(_LOOK_SECONDS)
        finally:
            self._publish(b"")
            self._put(announced=False)
        return record

    def _announcement(self, model: Base) -> Announcement:
        record, now = self._record, self._now()
        return Announcement(
            fleet=record.fleet,
            round=record.round,
            task="evaluate",
            opened_at=now,
            deadline=now + timedelta(seconds=record.settings.gate.devices_seconds),
            base=model,
            compare=record.base,
            cohort=record.cohort,
            upload=Upload(bucket=self._bucket, prefix=update_prefix(record.fleet, record.round)),
        )

    def _load(self) -> RoundRecord:
        return load_round(self._rounds, self._record.fleet, self._record.round)

    def _publish(self, payload: bytes) -> None:
        self._iot_data.publish(topic=round_topic(self._record.fleet), qos=1, retain=True, payload=payload)

    def _put(self, **flags: bool) -> None:
        self._rounds.update_item(
            Key={"fleet": self._record.fleet, "key": round_key(self._record.round)},
            UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in flags),
            ExpressionAttributeNames={f"#{name}": name for name in flags},
            ExpressionAttributeValues={f":{name}": value for name, value in flags.items()},
        )


def enough(record: RoundRecord) -> bool:
    """Say whether there is nothing left to wait for: a quorum of figures, or everyone's answer."""
    return record.judged >= record.quorum or record.judged + record.not_judged >= record.asked


def verdicts(parts: Iterable[Participation], checks: Checks) -> tuple[Evaluation, Evaluation] | None:
    """Return the base's and the model's figures, weighted by examples; None if no device gave any.

    A device's examples are its own word: as with updates they count for no more than the checks allow, by themselves and by the
    median of all that judged, so that no device outvotes the others.
    """
    judged = [part for part in parts if part.judged_metrics]
    if not judged:
        return None
    bound = float(checks.max_examples)
    if checks.max_examples_over_median and len(judged) > 1:
        bound = min(bound, checks.max_examples_over_median * median_low(part.judged_examples for part in judged))
    weights = [min(part.judged_examples, bound) for part in judged]

    def mean(name: str) -> float | None:
        pairs = zip(judged, weights, strict=True)
        given = [(part.judged_metrics[name], weight) for part, weight in pairs if name in part.judged_metrics]
        return sum(value * weight for value, weight in given) / sum(weight for _, weight in given) if given else None

    def figures(prefix: str) -> Evaluation:
        return Evaluation(
            loss=mean(f"{prefix}loss") or 0.0, accuracy=mean(f"{prefix}accuracy"), examples=int(sum(weights))
        )

    return figures("base_"), figures("")
