"""The helpers of a fleet: asked by the round's announcement, and heard by the object that each uploads.

The set is written first, as an object for each helper, which the announcement names by digest. It is retained: a helper that
was off, or was killed, finds it when it comes back, and does it once. What is announced is in the round's record, as with
`fedgrass.cloud.aggregator.device_evaluation`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.ending.announcement import announce
from fedgrass.errors import MessageError, RecordError, TransferError
from fedgrass.logs import Log
from fedgrass.polling import poll
from fedgrass.protocol.messages import SumTask
from fedgrass.protocol.names import check_key, command_key, sum_command, sum_request_key
from fedgrass.protocol.records import RoundRecord, round_key
from fedgrass.protocol.tables import Table, load_round
from fedgrass.protocol.writes import change, update_item
from fedgrass.secure.answer import answer_bytes
from fedgrass.secure.check import BoxCheck, Checked, judged, most_bytes
from fedgrass.secure.request import SumRequest

_LOOK_SECONDS = 1.0
_BLOCK = 1 << 20


class FleetHelpers:
    """A round's helpers, seen from its job.

    Parameters
    ----------
    record, rounds, bucket, iot_data
        The round and its table, the fleet's bucket, and the client that publishes.
    scratch
        Folder for the answers.
    """

    def __init__(
        self,
        record: RoundRecord,
        rounds: Table,
        bucket: Bucket,
        iot_data: Any,
        scratch: Path,
        log: Log,
        *,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._rounds = rounds
        self._bucket = bucket
        self._iot_data = iot_data
        self._scratch = scratch / "answers"
        self._log = log
        self._pause = pause
        self._clock = clock
        self._refused: set[tuple[str, int]] = set()

    def check(self, requests: Sequence[SumRequest]) -> Checked:
        """Ask which boxes open, and fix what is made of it: a job that is run again must name the very same set."""
        key = check_key(self._record.fleet, self._record.round)
        # A gigabyte bounds what a broken object could make this job read.
        content = self._bucket.read(key, max_bytes=1 << 30)
        if content is None:
            found = {index: self._read_check(requests[index], path) for index, path in self.ask(requests).items()}
            checked = judged(requests[0].accepted, {index: one for index, one in found.items() if one is not None})
            # The first one written counts: two runs of the job may have heard from other helpers.
            content = self._bucket.write_first(key, checked.model_dump_json().encode())
        try:
            return Checked.model_validate_json(content)
        except ValidationError as error:
            raise TransferError(f"{self._bucket.uri(key)}: is no check of boxes; move it away to ask again") from error

    def _read_check(self, request: SumRequest, path: Path) -> BoxCheck | None:
        things = frozenset(one.thing for one in request.accepted.members)
        try:
            return BoxCheck.decode(path.read_bytes(), request.digest, things)
        except MessageError as error:
            self._log.log_event("helper_check_refused", helper=self._name(request), reason=str(error))
            return None

    def ask(self, requests: Sequence[SumRequest]) -> Mapping[int, Path]:
        """Tell each helper the set, and wait until as many as are needed have answered, or their time is up."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        accepted = requests[0].accepted
        # Before the announcement: whoever hears of a set must find it.
        named = {self._name(request): self._written(request) for request in requests}
        task = SumTask(digest=requests[0].digest, requests=named)
        self._log.log_event(
            "helpers_asked",
            check=requests[0].check,
            helpers=list(named),
            devices=len(accepted.members),
            needed=accepted.needed[0],
        )
        self._change(put={"sums": task.model_dump(mode="json")})
        try:
            self._announce()
            return self._heard(requests)
        # Whatever came of it: a helper that comes back later must not sum for a round that waits no more.
        finally:
            self._change(remove=["sums"])
            self._announce()

    def _heard(self, requests: Sequence[SumRequest]) -> dict[int, Path]:
        found: dict[int, Path] = {}
        secure = self._record.settings.secure
        needed = requests[0].accepted.needed[0]
        began = self._clock()
        end = began + (0.0 if secure is None else secure.helper_seconds)
        ends_early = False

        def look() -> int:
            nonlocal end, ends_early
            for request in requests:
                if request.helper not in found and (path := self._answer(request)) is not None:
                    found[request.helper] = path
                    self._log.log_event("helper_answered", helper=self._name(request))
            if len(found) >= needed and requests[0].check and not ends_early:
                # What those say who are a little later is worth as long a wait again: the more helpers can sum, the better.
                end = min(end, self._clock() + max(self._clock() - began, 2 * _LOOK_SECONDS))
                ends_early = True
            return len(found)

        # Of a check all are waited for; of sums as many as are needed say everything.
        wanted = len(requests) if requests[0].check else min(needed, len(requests))
        poll(
            look,
            lambda heard: heard >= wanted or not self._waited_for(),
            until=lambda: end,
            pause=_LOOK_SECONDS,
            sleep=self._pause,
            clock=self._clock,
        )
        return found

    def _name(self, request: SumRequest) -> str:
        return request.accepted.task.helpers[request.helper].name

    def _written(self, request: SumRequest) -> str:
        """Write what a helper is to sum; returns its digest."""
        content = request.encode()
        self._bucket.write(sum_request_key(self._record.fleet, self._record.round, self._name(request)), content)
        return hashlib.sha256(content).hexdigest()

    def _answer(self, request: SumRequest) -> Path | None:
        """Return a helper's answer, downloaded; None if there is none yet. One of another size is none."""
        name = self._name(request)
        key = command_key(self._record.fleet, name, sum_command(self._record.round, request.digest))
        size = self._bucket.size(key)
        if size is None:
            return None
        # A helper may write any object under its key: only the right size is downloaded.
        expected = _expected(request, size)
        if size != expected:
            # Once for each object: it lies there as long as the job waits, and is looked at each second.
            if (key, size) not in self._refused:
                self._refused.add((key, size))
                self._log.log_event("helper_answer_refused", helper=name, bytes=size, expected=expected)
            return None
        path = self._scratch / f"{request.helper}{'-check' if request.check else ''}"
        with self._bucket.open(key, size) as body, path.open("wb") as file:
            while block := body.read(_BLOCK):
                file.write(block)
        # Read while it was replaced, it may be shorter: the next look takes it again.
        return path if path.stat().st_size == expected else None

    def _waited_for(self) -> bool:
        """Whether the round still waits: it may have been cancelled."""
        try:
            now = load_round(self._rounds, self._record.fleet, self._record.round)
        except RecordError:
            return False
        return now.phase == "aggregating" and now.outcome is None

    def _announce(self) -> None:
        announce(self._rounds, self._iot_data, self._record.fleet, self._bucket.name, alone=self._record.round)

    def _change(self, **clauses: Any) -> None:
        update_item(
            self._rounds,
            Key={"fleet": self._record.fleet, "key": round_key(self._record.round)},
            **change(**clauses),
        )


def _expected(request: SumRequest, size: int) -> int:
    """Return the size that an answer of this size should have: itself, if it may be of any up to a bound."""
    if request.check:
        return min(size, most_bytes(len(request.accepted.members)))
    return answer_bytes(request.accepted, request.helper)
