"""What a round's job works from: its pinned list of updates, late ones among them, and what each must say of itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.late import earlier_rounds, late_updates
from fedgrass.cloud.aggregator.listed import listed_updates, without_uninvited
from fedgrass.cloud.aggregator.release import FleetClients
from fedgrass.cloud.aggregator.s3 import RoundUpdates
from fedgrass.cloud.aggregator.update_list import UpdateList, pin_update_list, seed_before
from fedgrass.cloud.aggregator.validation import EarlierRound, Expected
from fedgrass.protocol.losses import load_losses
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.roster import things_of_fleet
from fedgrass.strategies import Strategy


@dataclass(frozen=True)
class RoundInput:
    """The updates of a round and the late ones of earlier rounds that its strategy takes; each is read once.

    All instances of a job, and a job that runs again, work from the same list: the first that pins it decides.
    """

    record: RoundRecord
    clients: FleetClients
    source: RoundUpdates
    strategy: Strategy

    @cached_property
    def earlier(self) -> dict[int, EarlierRound]:
        """The earlier rounds whose late updates are taken, by number."""
        return earlier_rounds(self.clients.rounds, self.clients.bucket, self.record, self._staleness)

    @cached_property
    def pinned(self) -> UpdateList:
        """The updates that the round combines, and what was refused by its name already."""
        # Before the listing: an update must not be listed as late whose use a report then tells of.
        record, earlier, things = self.record, self.earlier, self._things()
        listed = listed_updates(self.source, things)
        if self.record.cohort.by_loss is not None:
            listed = without_uninvited(listed, self.record, load_losses(self.clients.rounds, self.record.fleet))
        found = [*listed.updates, *late_updates(self.source, earlier, things)]
        bucket, fleet, number = self.clients.bucket, record.fleet, record.round
        seed = seed_before(bucket, fleet, number) if record.tree_step > 1 else ""
        return pin_update_list(bucket, fleet, number, found, listed.refused, listed.more, noise_seed=seed)

    def expected(self, base: Bundle) -> Expected:
        """Return what an update must say of itself."""
        return Expected(
            base_sha256=base.manifest.parameters_sha256,
            graph_sha256=base.manifest.graph_sha256,
            fleet=self.record.fleet,
            round=self.record.round,
            cohort=self.record.cohort,
            checks=self.record.settings.checks,
            earlier=self.earlier,
            plan=self.record.settings.step_plan(base.manifest.batch_size),
        )

    @property
    def _staleness(self) -> int:
        """How many earlier rounds' updates are taken: none where the round asks for statistics."""
        return self.strategy.staleness if self.record.settings.task == "fit" else 0

    def _things(self) -> set[str] | None:
        devices = self.clients.devices
        # Simulation has no table of devices, and no strangers.
        if devices is None:
            return None
        return things_of_fleet(devices, self.record.fleet, self.record.settings.silos)
