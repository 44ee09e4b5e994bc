"""The demo's steps, from an empty folder to a report."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fedgrass.bundle import Bundle
from fedgrass.cli import page, render
from fedgrass.cloud.aggregator.release import FleetClients, publish_model
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.data.digits import digits_bundle
from fedgrass.errors import FedgrassError
from fedgrass.local.demo import baselines, data, secure, wheels
from fedgrass.local.demo.summary import DemoReport, RoundSummary, summarise_round
from fedgrass.local.fleet import LocalFleet
from fedgrass.polling import poll
from fedgrass.protocol import tables
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import GLOBAL_MODEL, evaluation_key, report_key
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings

_FLEET = "digits"
_FIRST_DEPLOYMENT_SECONDS = 600
_HEARTBEAT_SECONDS = 5.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class DemoOptions:
    """What the user chooses."""

    devices: int
    rounds: int
    seed: int
    mqtt: str | None = None
    secure: bool = False


class Demo:
    """One run; leaving its ``with`` block stops every process.

    Parameters
    ----------
    make_fleet
        Makes the fleet; tests give one that can be disturbed.
    """

    def __init__(
        self,
        options: DemoOptions,
        folder: Path,
        *,
        cache: Path,
        console: Console,
        make_fleet: Callable[..., LocalFleet] = LocalFleet,
    ) -> None:
        self._options = options
        self._console = console
        self._started = time.monotonic()
        self._things = [f"device-{number}" for number in range(1, options.devices + 1)]
        self._bundle = Bundle.open(digits_bundle())
        with self._step("Packages for the devices"):
            environment = wheels.fill(cache)
        self._wheel_seconds = time.monotonic() - self._started
        self.fleet = make_fleet(folder, fleet=_FLEET, device_environment=environment, mqtt=options.mqtt)
        self.settings = FleetSettings().overridden(
            {
                "rounds": options.rounds,
                "min_devices": options.devices,
                "min_updates": min(2, options.devices),
                "deadline_seconds": 600,
                "fit": {"epochs": 5, "learning_rate": 0.2},
                "rollout": {"wait_seconds": 300},
            }
        )

    def __enter__(self) -> Demo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._step("Stopping every process"):
            self.fleet.stop()

    def run(self, *, setup_seconds: float) -> DemoReport:
        """Run it all and return what it found. ``setup_seconds`` is what the script spent before."""
        began = time.monotonic()
        self.start()
        start_seconds = time.monotonic() - began
        execution = self.fleet.aws.client("stepfunctions").start_execution(
            stateMachineArn=self.fleet.outputs.state_machine_arn, input=json.dumps({"rounds": self._options.rounds})
        )
        with self._baselines() as measuring:
            # While the round opens: it is needed at the end, and takes half a second to import.
            page.load()
            self._follow(execution["executionArn"])
            with self._step(f"For comparison: each device alone, and all data in one place, for {self._epochs} epochs"):
                measured = measuring.result()
        rounds = [self._summarise(record) for record in reversed(tables.recent_rounds(self.rounds_table, _FLEET, 100))]
        last = rounds[-1]
        first = self.report_of(1)
        return DemoReport(
            devices=len(self._things),
            seed=self._options.seed,
            rounds=rounds,
            final_version=last.version,
            final_accuracy=last.accuracy,
            initial_accuracy=first.evaluation_base.accuracy if first and first.evaluation_base else None,
            best_single_device_accuracy=measured.best_alone,
            single_device_accuracy=measured.alone,
            centralised_accuracy=measured.centralised,
            examples={thing: len(examples) for thing, examples in self._data.devices.items()},
            devices_active_on_final=self._active_on(last.version),
            setup_seconds=round(setup_seconds + self._wheel_seconds, 1),
            start_seconds=round(start_seconds, 1),
            total_seconds=round(time.monotonic() - began, 1),
        )

    def start(self) -> None:
        """Bring up the account and the devices, until each could train."""
        fleet = self.fleet
        # One after the other, in this thread: Ctrl-C may come while it takes logging's lock, which is never released then. This
        # thread may take it again; another would wait for ever, and this one for the other.
        # What takes a process its time is started early, and comes up beside what this thread does.
        with self._step("Local AWS, with the stack deployed"):
            fleet.begin_account()
            fleet.build_components()
            self._save_examples()
            fleet.start_account()
        with self._step("Components built and published"):
            for thing in self._things:
                fleet.start_device(thing)
            fleet.publish_components()
        with self._step("First model and evaluation set published"):
            s3 = fleet.aws.client("s3")
            s3.upload_file(str(self._kept), fleet.outputs.bucket, evaluation_key(_FLEET))
            publish_model(self._bundle, self.clients())
            tables.save_settings(self.rounds_table, _FLEET, self.settings)
        with self._step(f"{len(self._things)} core devices, the suite deployed to their thing group"):
            fleet.deploy_suite(
                data=str(self._examples("$AWS_IOT_THING_NAME")),
                heartbeat_seconds=_HEARTBEAT_SECONDS,
                more={
                    GLOBAL_MODEL: {"componentVersion": self._bundle.manifest.version},
                    **(secure.HELPERS if self._options.secure else {}),
                },
            )
            self._wait_for_devices()
        if self._options.secure:
            with self._step("Three helpers' keys pinned in the fleet's settings"):
                self.settings = secure.pinned(self.settings, self.devices_table, _FLEET)
                tables.save_settings(self.rounds_table, _FLEET, self.settings)

    def _wait_for_devices(self) -> None:
        deadline = time.monotonic() + _FIRST_DEPLOYMENT_SECONDS

        def ready() -> int:
            self.fleet.check_devices()
            members = fleet_members(self.devices_table, _FLEET)
            able = [m for m in members if m.heartbeat and m.heartbeat.able and m.heartbeat.model_version]
            if self._options.secure:
                able = [m for m in able if m.heartbeat and m.heartbeat.trainer.helper_key]
            return len(able)

        count = poll(ready, lambda found: found == len(self._things), until=lambda: deadline, pause=_LOOK_SECONDS)
        if count < len(self._things):
            raise FedgrassError(
                f"{count} of {len(self._things)} devices were able to train after {_FIRST_DEPLOYMENT_SECONDS} s; "
                f"see the logs under {self.fleet.folder / 'devices'}"
            )

    def _follow(self, execution: str) -> None:
        """Show each round as it goes, and one line for each that is closed."""
        client = self.fleet.aws.client("stepfunctions")
        closed = 0
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            # No `poll`: each turn shows the round.
            while True:
                described = client.describe_execution(executionArn=execution)
                records = list(reversed(tables.recent_rounds(self.rounds_table, _FLEET, 100)))
                for record in records[closed:]:
                    if record.phase != "closed":
                        live.update(render.round_line(record))
                        break
                    closed += 1
                    self._console.print(_closed_line(record), highlight=False)
                if described["status"] != "RUNNING":
                    break
                self.fleet.check_devices()
                time.sleep(_LOOK_SECONDS)
        if described["status"] != "SUCCEEDED" or closed < self._options.rounds:
            raise FedgrassError(
                f"{closed} of {self._options.rounds} rounds were closed; the execution ended as {described['status']}: "
                f"{described.get('cause') or described.get('error') or 'no cause given'}"
            )

    @property
    def _epochs(self) -> int:
        return self.settings.fit.epochs * self._options.rounds

    def _baselines(self) -> baselines.Measuring:
        task = baselines.Task(
            bundle=self._bundle.folder,
            devices={thing: self._examples(thing) for thing in self._things},
            kept=self._kept,
            epochs=self._epochs,
            learning_rate=self.settings.fit.learning_rate or self._bundle.manifest.optimizer.rate,
            seed=self._options.seed,
        )
        return baselines.Measuring(task, self.fleet.folder / "baselines.log")

    def report_of(self, number: int) -> RoundReport | None:
        """Return the aggregator's report of a round; None if that had too few updates to be aggregated."""
        s3, key = self.fleet.aws.client("s3"), report_key(_FLEET, number)
        try:
            stored = s3.get_object(Bucket=self.fleet.outputs.bucket, Key=key)
        except s3.exceptions.NoSuchKey:
            return None
        return RoundReport.read(stored["Body"].read(), name=key)

    def _summarise(self, record: RoundRecord) -> RoundSummary:
        parts = list(participations(self.rounds_table, _FLEET, record.round))
        return summarise_round(record, self.report_of(record.round), parts)

    def _active_on(self, version: str) -> int:
        members = fleet_members(self.devices_table, _FLEET)
        return sum(member.model is not None and member.model.active_version == version for member in members)

    def clients(self) -> FleetClients:
        """Return what the fleet is published to with."""
        return FleetClients(
            fleet=_FLEET,
            bucket=Bucket(self.fleet.aws.client("s3"), self.fleet.outputs.bucket),
            rounds=self.rounds_table,
            greengrass=self.fleet.aws.client("greengrassv2"),
            thing_group_arn=self.fleet.outputs.thing_group_arn,
        )

    @property
    def _kept(self) -> Path:
        return self.fleet.folder / "kept.npz"

    def _examples(self, thing: str) -> Path:
        return self.fleet.folder / "devices" / thing / "data" / "data.npz"

    def _save_examples(self) -> None:
        data.save(self._data.kept, self._kept)
        for thing, examples in self._data.devices.items():
            data.save(examples, self._examples(thing))

    @cached_property
    def _data(self) -> data.DemoData:
        shape = self._bundle.manifest.x.shape
        return data.digits(self._things, shape=shape, seed=self._options.seed)

    @cached_property
    def rounds_table(self) -> Any:
        """The table of rounds."""
        return self.fleet.table(self.fleet.outputs.rounds_table)

    @cached_property
    def devices_table(self) -> Any:
        """The table of devices."""
        return self.fleet.table(self.fleet.outputs.devices_table)

    def show(self, result: DemoReport) -> None:
        """Print the summary."""
        table = Table(title="Accuracy on the digits that were kept from all devices", title_justify="left")
        table.add_column("model")
        table.add_column("accuracy", justify="right")
        table.add_row(
            f"the fleet's, version {result.final_version}", f"[bold]{render.percent(result.final_accuracy)}[/]"
        )
        table.add_row("all data in one place", render.percent(result.centralised_accuracy))
        for thing, accuracy in result.single_device_accuracy.items():
            table.add_row(f"{thing} alone, {result.examples[thing]} digits", render.percent(accuracy))
        self._console.print(table)
        self._console.print(
            f"Version {result.final_version} is active on {result.devices_active_on_final} of {result.devices} devices. "
            f"{result.total_seconds:.0f} s, after {result.setup_seconds:.0f} s of set-up.",
            highlight=False,
        )

        if self._options.secure:
            held = secure.held(self.fleet.aws.client("s3"), self.fleet.outputs.bucket, _FLEET)
            self._console.print(
                f"The cloud held {held.masked} masked updates and [bold]{held.plain}[/] plain ones; compressed, the masked ones "
                f"take {held.compressed:.1%} of their bytes, as noise does. Helpers gave {held.sums} sums of masks.",
                highlight=False,
            )

    def show_around(self) -> None:
        """Write the variables that lead to the account, and print how to look at what runs."""
        file = self.fleet.folder / "environment"
        file.touch(0o600)  # it has the account's keys
        variables = {**self.fleet.aws.environment(), "FEDGRASS_FLEET": _FLEET}
        file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items())))
        self._console.rule("Everything is up until Ctrl-C. In another terminal:")
        shown = os.path.relpath(file)
        for line in (
            f". {shown}     # where the account is, and the fleet's name",
            ".venv/bin/fedgrass fleet list",
            ".venv/bin/fedgrass round start --wait",
            f"aws s3 ls --recursive s3://{self.fleet.outputs.bucket}/     # if you have the AWS command line",
            f"ls {os.path.relpath(self.fleet.folder)}/devices/*/greengrass/logs/",
        ):
            self._console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        began = time.monotonic()
        with self._console.status(title):
            yield
        self._console.print(f"[green]✓[/] {title} [dim]({time.monotonic() - began:.1f} s)[/]", highlight=False)


def _closed_line(record: RoundRecord) -> str:
    seconds = record.seconds_last_upload_to_active
    active = f"active on {record.active}/{record.alive}" + (
        f" {seconds:.1f} s after the last upload" if seconds else ""
    )
    return (
        f"[green]✓[/] Round {record.round}: {record.outcome}, version {record.version}, "
        f"accuracy [bold]{render.percent(record.accuracy)}[/], {record.participants} updates, "
        f"{record.quarantined} quarantined, {active}"
    )
