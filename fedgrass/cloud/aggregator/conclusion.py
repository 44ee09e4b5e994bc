"""How a round's job ends: its proposal, the outcome that is decided, what that asks for, and the report."""

from __future__ import annotations

from collections.abc import Callable

from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.ending.finish import finish
from fedgrass.cloud.ending.outcome import decide
from fedgrass.cloud.ending.reports import find_proposal, proposal_key, write_first
from fedgrass.errors import RecordError, ReleaseError, TransferError
from fedgrass.logs import Log
from fedgrass.protocol.names import report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import MAX_REPORT_BYTES, RoundReport
from fedgrass.protocol.tables import load_round, load_state


class Conclusion:
    """The end of one round, which more than one run of its job may come to.

    Parameters
    ----------
    record
        The round's record, as the job began with it.
    clients
        The fleet's storage and services.
    log
        Where it is told.
    """

    def __init__(self, record: RoundRecord, clients: FleetClients, log: Log) -> None:
        self._record = record
        self._clients = clients
        self._bucket = clients.bucket
        self._log = log

    def finished(self) -> RoundReport | None:
        """Return the round's report, if it has one.

        Raises
        ------
        TransferError
            If what is there cannot be read.
        ReleaseError
            If it is the report of an earlier fleet of this name.
        """
        key = report_key(self._record.fleet, self._record.round)
        content = self._bucket.read(key, max_bytes=MAX_REPORT_BYTES)
        if content is None:
            return None
        try:
            report = RoundReport.read(content, name=self._bucket.uri(key))
        except RecordError as error:
            raise TransferError(f"{error}; move it away to run again") from error
        # The round's number alone does not tell two lives of a fleet apart.
        if report.base.parameters_sha256 != self._record.base.parameters_sha256:
            raise ReleaseError(
                f"{self._bucket.uri(key)}: is of another round {self._record.round}, from base {report.base.version}. "
                "An earlier fleet of this name left it: move reports/, updates/ and models/ of that fleet away"
            )
        return report

    def is_open(self) -> bool:
        """Whether the round still waits for an outcome."""
        now = self._now()
        return now.outcome is None and now.phase == "aggregating"

    def proposed(self) -> RoundReport | None:
        """Return what an earlier run proposed: its canaries, and its devices, have spoken."""
        proposal = find_proposal(self._bucket.client, self._bucket.name, self._record)
        if proposal is not None:
            self._log.log_event("round_proposed_before", outcome=proposal.outcome)
        return proposal

    def propose(self, report: RoundReport) -> RoundReport:
        """Write a proposal, unless there is one; returns the one that counts."""
        key = proposal_key(report.fleet, report.round)
        return write_first(self._bucket.client, self._bucket.name, key, self._record, report)

    def decide(self, proposal: RoundReport) -> None:
        """Make what was proposed the round's outcome, unless it has one."""
        # A newer model has become the fleet's meanwhile: this one is kept as held, so that a person can still choose it.
        if decide(self._clients.rounds, self._record, proposal) == "superseded":
            current = load_state(self._clients.rounds, self._record.fleet).model
            found = current.version if current is not None else "none"
            reason = (
                f"the fleet's model is {found} now and not {self._record.base.version}, from which the round started"
            )
            decide(
                self._clients.rounds, self._record, proposal.model_copy(update={"outcome": "held", "reason": reason})
            )

    def reached(self, held: Callable[[str], RoundReport]) -> RoundReport:
        """Do what the round's outcome asks for, whoever wrote it, and return the report.

        Parameters
        ----------
        held
            Makes the report, from a reason, of a round that others ended meanwhile.
        """
        now = self._now()
        report = finish(self._clients.place, now)
        # Cancelled or failed by somebody else: what the job found is nobody's to count.
        if report is None:
            ended = f"{now.outcome}: {now.reason}" if now.outcome else now.phase
            reason = f"the round is not aggregating any more, but {ended}; nothing is released after its end"
            self._log.log_event("round_ended_meanwhile", reason=reason)
            return held(reason)
        self._log.log_event(
            "aggregation_finished",
            outcome=report.outcome,
            reason=report.reason,
            updates=len(report.updates),
            seconds=report.seconds,
        )
        return report

    def _now(self) -> RoundRecord:
        return load_round(self._clients.rounds, self._record.fleet, self._record.round)
