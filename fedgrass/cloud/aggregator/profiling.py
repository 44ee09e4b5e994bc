"""A round of statistics: from the devices' sums to the fleet's profile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.aggregate import Aggregation
from fedgrass.cloud.aggregator.candidate import without_model
from fedgrass.cloud.aggregator.report import ReportBuilder
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.cloud.aggregator.screening import Screening
from fedgrass.cloud.aggregator.sources import UpdateReference, UpdateSource
from fedgrass.cloud.aggregator.summed_profile import SummedRound, summed_profile
from fedgrass.cloud.aggregator.validation import Expected, UpdateValidator
from fedgrass.cloud.aggregator.vector import Layout as ModelLayout
from fedgrass.errors import DataError, TransferError, UpdateError
from fedgrass.logs import log_event
from fedgrass.profile.combine import combine, profile_of
from fedgrass.profile.features import feature_names
from fedgrass.profile.files import Layout, read
from fedgrass.profile.sums import FeatureSums
from fedgrass.protocol.profile import Profile, ProfileReference, StatisticsTask, profile_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import Outcome, UpdateEntry
from fedgrass.protocol.statistics_settings import Statistics


@dataclass
class Collected:
    """A round's files of sums, each read as often as asked for; those that are refused are not read again."""

    source: UpdateSource
    references: Sequence[UpdateReference]
    layout: Layout
    expected: Expected
    screening: Screening
    used: dict[str, UpdateEntry] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        base: Bundle,
        source: UpdateSource,
        references: Sequence[UpdateReference],
        layout: Layout,
        expected: Expected,
    ) -> Collected:
        """Admit files by what the storage says of them.

        Parameters
        ----------
        base
            The round's model.
        source, references
            Where the files are, and which.
        layout
            What they hold.
        expected
            What they must say of themselves.
        """
        examiner = UpdateValidator(expected)
        # No norm and no weight here: only what storage and headers say is checked.
        screening = Screening(ModelLayout.of(base.manifest), source, examiner, weight=lambda _: 1.0)
        return cls(source, screening.admit(references), layout, expected, screening)

    def read(self) -> Iterator[tuple[str, FeatureSums]]:
        """Yield each good device's name and sums, in the same order each time."""
        # Combining reads the files several times; a bad one is named once.
        left = [reference for reference in self.references if reference.key not in self.refused]
        for reference, opened in self.screening.openers(left):
            try:
                with opened() as stream:
                    header, sums = read(stream, reference.bytes, self.layout)
                self.screening.examiner.check_header(reference, header)
            except UpdateError as error:
                self.refused.add(reference.key)
                # It was good at an earlier reading: storage has changed it since.
                self.used.pop(reference.key, None)
                self.screening.refuse(reference, error)
                continue
            self.used[reference.key] = UpdateEntry(
                thing=header.thing,
                key=reference.key,
                etag=reference.etag,
                bytes=reference.bytes,
                num_examples=min(header.num_examples, self.expected.checks.max_examples),
                weight=0.0,
                norm=0.0,
            )
            yield header.thing, sums

    def result(self, left_out: Sequence[str], examples: float) -> Aggregation:
        """Return what became of the files; one that was left out weighs nothing."""
        out = set(left_out)
        entries = (
            entry.model_copy(
                update={"weight": 0.0 if entry.thing in out or not examples else entry.num_examples / examples}
            )
            for entry in self.used.values()
        )
        return Aggregation(None, tuple(sorted(entries, key=lambda entry: entry.key)), tuple(self.screening.refused))


def make_profile(
    collected: Collected, base: Bundle, wanted: Statistics, *, fleet: str, number: int, made_at: datetime
) -> tuple[Profile, Aggregation]:
    """Combine a round's files to the fleet's profile.

    Parameters
    ----------
    collected
        The files.
    base
        The round's model, whose inputs are described.
    wanted
        The round's settings.
    fleet, number
        The fleet's name, and the round's number.
    made_at
        When, with its time zone.
    """
    most, names = collected.expected.checks.max_examples, feature_names(base.manifest)
    combined = combine(collected.read, collected.layout, names, most=most, leave_out=wanted.leave_out)
    profile = profile_of(combined, base.manifest, fleet=fleet, number=number, made_at=made_at)
    return profile, collected.result(combined.left_out, combined.sums.examples)


@dataclass(frozen=True)
class ProfileJob:
    """The part of a round's job that makes a profile; what it finds goes into ``report``."""

    record: RoundRecord
    bucket: Bucket
    source: UpdateSource
    report: ReportBuilder
    clock: Callable[[], datetime]
    counted: Callable[[Aggregation], Aggregation]
    summed: SummedRound | None = None

    def run(self, base: Bundle, references: Sequence[UpdateReference], expected: Expected) -> tuple[Outcome, str]:
        """Make the profile and write it; returns the round's outcome.

        Parameters
        ----------
        base
            The round's model.
        references
            The files.
        expected
            What each must say of itself.

        Raises
        ------
        TransferError
            If the profile that the round has its bounds from cannot be read, or the new one not be written.
        """
        record, wanted = self.record, self.record.settings.statistics
        task = StatisticsTask(bins=wanted.bins, low=wanted.low, high=wanted.high, profile=record.bounds)
        with self.report.phases.timed("aggregate"):
            profile, result = self._made(base, references, expected, task)
        self.report.aggregation = result = self.counted(result)
        for entry in result.quarantined:
            log_event(
                "update_quarantined", fleet=record.fleet, round=record.round, thing=entry.thing, reason=entry.reason
            )
        # Devices that were left out do not count towards the minimum: the profile is not of them.
        left_out = profile.left_out if profile is not None else 0
        if profile is None or len(result.updates) - left_out < record.settings.min_updates:
            outcome, reason = without_model(result, record.settings.min_updates)
            return outcome, reason + (f"; {left_out} of them do not fit the others" if left_out else "")
        with self.report.phases.timed("write"):
            self.report.profile = self._written(profile)
        return "profiled", told(profile)

    def _made(
        self, base: Bundle, references: Sequence[UpdateReference], expected: Expected, task: StatisticsTask
    ) -> tuple[Profile | None, Aggregation]:
        wanted, earlier = self.record.settings.statistics, self._earlier(task)
        fleet, number, made_at = self.record.fleet, self.record.round, self.clock()
        if self.summed is None:
            layout = Layout.of(base.manifest, task, earlier)
            files = Collected.of(base, self.source, references, layout, expected)
            return make_profile(files, base, wanted, fleet=fleet, number=number, made_at=made_at)
        result, sums = self.summed.combine(base, self.source, references, expected, earlier)
        if sums is None:
            return None, result
        devices = len(result.updates)
        return summed_profile(sums, base, devices, fleet=fleet, number=number, made_at=made_at), result

    def _earlier(self, task: StatisticsTask) -> Profile | None:
        named = task.profile
        if named is None:
            return None
        content = self.bucket.read(named.key, max_bytes=named.bytes)
        if content is None or hashlib.sha256(content).hexdigest() != named.sha256:
            raise TransferError(f"{self.bucket.uri(named.key)}: is not the profile that the round names")
        try:
            return Profile.read(content, name=named.key)
        except DataError as error:
            raise TransferError(str(error)) from error

    def _written(self, profile: Profile) -> ProfileReference:
        key = profile_key(profile.fleet, profile.round)
        # A job that runs again finds the same, but for the time.
        content = self.bucket.write_first(key, profile.to_json())
        return ProfileReference(
            round=profile.round,
            key=key,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            graph_sha256=profile.graph_sha256,
        )


def told(profile: Profile) -> str:
    """Say in a sentence what a profile is of."""
    text = f"{len(profile.features)} features of {profile.examples:.0f} examples on {profile.devices} devices"
    if profile.noise is not None:
        text += f"; each count has noise of deviation {profile.noise:.3g}"
    if odd := len({misfit.thing for misfit in profile.misfits}):
        text += f"; {odd} devices have features that do not fit the others', {profile.left_out} are left out"
    return text
