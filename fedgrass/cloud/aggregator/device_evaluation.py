"""Have devices evaluate a candidate model and its base before a release, each on the examples that it keeps back.

The job announces the evaluation itself and waits: in the state machine it would take a second job to release. The announcement
has the round's number and cohort and a later time, so devices take it for what it is, another task. Their notices are counted in
the round's record (`fedgrass.cloud.rounds.device_evaluation`), each device once, so that a job that is run again goes on with
what was said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from fedgrass.cloud.ending.announcement import announce
from fedgrass.polling import poll
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.figures import Claim, pooled
from fedgrass.protocol.messages import Base
from fedgrass.protocol.records import Participation, Question, RoundRecord, round_key
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.tables import Table, load_round
from fedgrass.protocol.writes import change, update_item

if TYPE_CHECKING:
    from mypy_boto3_iot_data import IoTDataPlaneClient

_LOOK_SECONDS = 2.0


class DeviceEvaluation:
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
        iot_data: IoTDataPlaneClient,
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
        """Have the model and the round's base evaluated; return the record with the answers that came in time."""
        record = self._load()
        # A job that was started again: the devices have answered the first one.
        if enough(record):
            return record
        now = self._now()
        deadline = now + timedelta(seconds=record.settings.gate.devices_seconds)
        question = Question(model=model, asked_at=now, deadline=deadline)
        # Written before it is announced: the announcement is made from the record, and whoever ends the round sees that
        # it asks.
        self._change(put={"question": question.model_dump(mode="json"), "judging": True})
        # The monotonic clock for the wait; `deadline` is for the devices, in wall time.
        end = self._clock() + record.settings.gate.devices_seconds
        try:
            self._announce()
            # Polled, as canaries are (docs/decisions/0018 and 0023).
            record = poll(
                self._load,
                lambda found: enough(found) or not _waits(found),
                until=lambda: end,
                pause=_LOOK_SECONDS,
                sleep=self._pause,
                clock=self._clock,
            )
        finally:
            # Withdrawn whatever happened, an interrupt included: a device that wakes later must not evaluate for
            # nobody.
            self._change(remove=["question"])
            self._announce()
        return record

    def _load(self) -> RoundRecord:
        return load_round(self._rounds, self._record.fleet, self._record.round)

    def _announce(self) -> None:
        announce(self._rounds, self._iot_data, self._record.fleet, self._bucket, alone=self._record.round)

    def _change(self, **clauses: Any) -> None:
        update_item(
            self._rounds,
            Key={"fleet": self._record.fleet, "key": round_key(self._record.round)},
            **change(**clauses),
        )


def _waits(record: RoundRecord) -> bool:
    return record.phase == "aggregating" and record.outcome is None


def enough(record: RoundRecord) -> bool:
    """Say whether there is nothing left to wait for: a quorum of figures, or everyone's answer."""
    # Everyone's answer counts, too: devices that cannot evaluate would otherwise hold the round until its deadline.
    return record.judged >= record.quorum or record.judged + record.not_judged >= record.asked


def verdicts(parts: Iterable[Participation], checks: Checks) -> tuple[Evaluation, Evaluation] | None:
    """Return the base's and the model's figures, weighted by examples; None if no device gave any."""
    claims = [
        Claim(part.judged_examples, part.judged_metrics, {"": part.judged_sums, "base_": part.judged_base_sums})
        for part in parts
        if part.judged_metrics
    ]
    if not claims:
        return None

    def figures(prefix: str) -> Evaluation:
        found = pooled(claims, checks, prefix)
        return Evaluation.of(found.figures, found.examples, found.averaged)

    return figures("base_"), figures("")
