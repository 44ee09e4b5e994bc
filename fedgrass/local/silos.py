"""``python -m fedgrass.local.silos FOLDER``: a federation of silos on this machine, each in an account of its own.

The accounts are local stand-ins (docs/local.md). The stacks, the start by an assumed role, the jobs' code, the rounds' state
machine and the aggregation are those of AWS. What builds a model is importable here, as it is in silos' and the job's images.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedgrass.architecture import engine_of
from fedgrass.bundle import Bundle
from fedgrass.checkout import checkout
from fedgrass.cli import render
from fedgrass.cloud.aggregator.download import download_bundle
from fedgrass.cloud.aggregator.own_engine import BUILDER, ENGINE
from fedgrass.cloud.aggregator.release import FleetClients, publish_model
from fedgrass.cloud.aggregator.s3 import Bucket
from fedgrass.errors import ConfigurationError, FedgrassError
from fedgrass.local.aws.client import LocalAwsProcess
from fedgrass.local.aws.client import start as start_aws
from fedgrass.local.fleet import LocalFleet
from fedgrass.protocol import tables
from fedgrass.protocol.members import fleet_members
from fedgrass.protocol.names import evaluation_key, report_key
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.report import RoundReport
from fedgrass.protocol.settings import FleetSettings

FLEET = "silos"
_DATA = "data.csv"
_LOOK_SECONDS = 0.25
_IMAGE = "fedgrass/image@sha256:" + "5" * 64  # stands for the image that silos name by digest
_FEDGRASS = (sys.executable, "-c", "from fedgrass.cli import app; app()")


@dataclass(frozen=True)
class Silo:
    """A silo, its account's number, and what runs beside its data."""

    account: str
    folder: Path
    engine: str
    builder: str
    patience: float

    @property
    def name(self) -> str:
        """What the fleet knows it by."""
        return f"{self.account}-{self.folder.name}"


def silos_in(folder: Path, engine: str, builder: str, patience: float) -> list[Silo]:
    """Return a silo for each folder that holds data; raises `ConfigurationError` if there are fewer than two."""
    found = [path.parent for path in sorted(folder.glob(f"*/{_DATA}"))]
    if len(found) < 2:
        raise ConfigurationError(f"{folder}: {len(found)} silos; expected two or more folders with a {_DATA} each")
    return [Silo(str(number) * 12, one, engine, builder, patience) for number, one in enumerate(found[:9], start=1)]


@contextlib.contextmanager
def account_of(silo: Silo, fleet: LocalFleet, place: Path) -> Iterator[LocalAwsProcess]:
    """Start a silo's account, with its data and its stack in it, as its administrator would."""
    bucket = f"data-{silo.account}"
    with start_aws(place, account=silo.account, accounts=fleet.accounts) as aws:
        aws.client("s3").create_bucket(Bucket=bucket)
        aws.client("s3").upload_file(str(silo.folder / _DATA), bucket, f"fedgrass/{_DATA}")
        registry = f"{fleet.aws.account}.dkr.ecr.{fleet.aws.region}.amazonaws.com"
        parameters = {
            "Silo": silo.folder.name,
            "Fleet": fleet.fleet,
            "FleetAccount": fleet.aws.account,
            "FleetRole": f"arn:aws:iam::{fleet.aws.account}:role/fedgrass-{fleet.fleet}-silo",
            "FleetRegion": fleet.aws.region,
            "Image": f"{registry}/{_IMAGE}",
            "DataBucket": bucket,
            "File": _DATA,
            "Engine": silo.engine,
            "Builder": silo.builder,
            "WaitSeconds": str(int(silo.patience)),
        }
        aws.client("cloudformation").create_stack(
            StackName=f"fedgrass-silo-{silo.folder.name}",
            TemplateBody=(checkout() / "cloud" / "silo_account.yaml").read_text(),
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield aws


class Federation:
    """A fleet whose participants are silos, started and stopped with the ``with`` block around it."""

    def __init__(self, fleet: LocalFleet, silos: list[Silo], settings: FleetSettings) -> None:
        self.fleet = fleet
        self.silos = silos
        self.settings = settings
        names = tuple(silo.name for silo in silos)
        self.settings = settings.overridden({"silos": names, "min_devices": max(settings.min_devices, len(silos))})

    @property
    def clients(self) -> FleetClients:
        """What the fleet is published to with."""
        return FleetClients(
            fleet=FLEET,
            bucket=Bucket(self.fleet.aws.client("s3"), self.fleet.outputs.bucket),
            rounds=self.fleet.table(self.fleet.outputs.rounds_table),
            greengrass=self.fleet.aws.client("greengrassv2"),
            thing_group_arn=self.fleet.outputs.thing_group_arn,
        )

    def publish(self, bundle: Bundle, evaluation: Path) -> None:
        """Publish the first model, the server's own test set and the settings."""
        s3 = self.fleet.aws.client("s3")
        s3.upload_file(str(evaluation), self.fleet.outputs.bucket, evaluation_key(FLEET))
        publish_model(bundle, self.clients)
        tables.save_settings(self.clients.rounds, FLEET, self.settings)

    def start_silos(self, patience: float) -> None:
        """Start every silo's job by the role that is assumed in its account, and wait until all are there."""
        self.command("silo", "start", *(silo.name for silo in self.silos), "--rounds", str(self.settings.rounds))
        devices = self.fleet.table(self.fleet.outputs.devices_table)
        missing, deadline = {silo.name for silo in self.silos}, time.monotonic() + patience
        while missing:
            if time.monotonic() > deadline:
                raise FedgrassError(f"silo {min(missing)!r}: its job did not report within {patience:.0f} s")
            time.sleep(_LOOK_SECONDS)
            missing -= {member.thing for member in fleet_members(devices, FLEET) if member.heartbeat is not None}

    def run(self) -> Iterator[tuple[RoundRecord, RoundReport | None]]:
        """Run the rounds by one execution of the state machine; yields each with its report."""
        self.command("round", "start", "--rounds", str(self.settings.rounds), "--wait")
        s3 = self.fleet.aws.client("s3")
        for record in reversed(tables.recent_rounds(self.clients.rounds, FLEET, 100)):
            with contextlib.suppress(s3.exceptions.NoSuchKey):
                key = report_key(FLEET, record.round)
                stored = s3.get_object(Bucket=self.fleet.outputs.bucket, Key=key)
                yield record, RoundReport.read(stored["Body"].read(), name=key)
                continue
            yield record, None

    def model(self, folder: Path) -> Bundle:
        """Download the fleet's model to a folder, in place of what is there."""
        released = tables.load_state(self.clients.rounds, FLEET).model
        if released is None:
            raise FedgrassError(f"fleet {FLEET!r} has no model")
        shutil.rmtree(folder, ignore_errors=True)
        return download_bundle(self.clients.bucket, released, folder)

    def command(self, *words: str) -> None:
        """Run ``fedgrass``, as a person would; raises `FedgrassError` with its words if it fails."""
        environment = {**os.environ, **self.fleet.aws.environment(), "FEDGRASS_FLEET": FLEET}
        done = subprocess.run([*_FEDGRASS, *words], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise FedgrassError(f"fedgrass {' '.join(words)}: {done.stderr.strip()[-1500:]}")


def shown(rounds: list[tuple[RoundRecord, RoundReport | None]]) -> Table:
    """Return the rounds as a table: who took part, and the server's own figures."""
    figures = ("precision", "recall", "f1")
    table = Table("round", "outcome", "silos", "loss", "accuracy", *figures)
    for record, report in rounds:
        found = report.evaluation if report is not None else None
        values: list[float | None] = [None] * 5
        if found is not None:
            values = [found.loss, found.accuracy, *(found.metrics.get(name) for name in figures)]
        told = ["" if value is None else f"{value:.3f}" for value in values]
        table.add_row(str(record.round), record.outcome or "", str(record.uploaded), *told)
    return table


def main(
    folder: Annotated[
        Path,
        typer.Argument(
            help="bundle/ (the first model), evaluation.npz (the server's test set), and for each silo a folder with a data.csv.",
            exists=True,
            file_okay=False,
        ),
    ],
    engine: Annotated[str, typer.Option(help="What silos train with. [default: the model's engine]")] = "",
    builder: Annotated[str, typer.Option(help="module:object that builds the model, or is the client, in silos.")] = "",
    evaluation_engine: Annotated[
        str, typer.Option(help="What the server evaluates with. [default: the model's engine]")
    ] = "",
    evaluation_builder: Annotated[str, typer.Option(help="module:object that builds the model for that.")] = "",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds to run.")] = 3,
    settings: Annotated[str, typer.Option(help="Further settings of the fleet, as JSON.", metavar="JSON")] = "{}",
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for silos' jobs.")] = 300,
) -> None:
    """Run rounds of silos on this machine: each in an account of its own, started by a role that is assumed there.

    The last model is written to FOLDER/model.
    """
    console = render.console()
    try:
        models_own = engine_of(Bundle.open(folder / "bundle"))
        silos = silos_in(folder, engine or models_own, builder, patience)
    except FedgrassError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    # What the image of the job would say, and where its code would be.
    here = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    os.environ.update({ENGINE: evaluation_engine or models_own, BUILDER: evaluation_builder, "PYTHONPATH": here})
    try:
        given: dict[str, Any] = json.loads(settings)
        asked = FleetSettings().overridden({"rounds": rounds, "rollout": {"wait_seconds": 1}, **given})
        with tempfile.TemporaryDirectory(prefix="fedgrass-") as state, contextlib.ExitStack() as stack:
            fleet = stack.enter_context(LocalFleet(Path(state), fleet=FLEET))
            fleet.start_account()
            federation = Federation(fleet, silos, asked)
            federation.publish(Bundle.open(folder / "bundle"), folder / "evaluation.npz")
            for silo in silos:
                stack.enter_context(account_of(silo, fleet, Path(state) / silo.account))
                console.print(f"silo {silo.name}: an account, its data and its stack", highlight=False)
            federation.start_silos(patience)
            console.print("every silo's job has been started, and reports", highlight=False)
            console.print(shown(list(federation.run())))
            console.print(f"wrote {federation.model(folder / 'model').folder}", highlight=False)
    except (FedgrassError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
