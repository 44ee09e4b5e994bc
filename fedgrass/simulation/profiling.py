"""A round of statistics on virtual devices: the device's own measuring, its files, and the job's combining."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.privacy import noise_of
from fedgrass.cloud.aggregator.profiling import Collected, make_profile
from fedgrass.cloud.aggregator.sources import Folder
from fedgrass.cloud.aggregator.summed_profile import SummedRound, summed_profile
from fedgrass.cloud.aggregator.validation import Expected
from fedgrass.errors import DataError
from fedgrass.files import write_atomically
from fedgrass.profile.device import measure
from fedgrass.profile.files import Layout
from fedgrass.protocol.messages import Announcement, Base, Cohort, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.protocol.profile import Profile, StatisticsTask
from fedgrass.protocol.settings import FleetSettings
from fedgrass.protocol.statistics_settings import tells_sums
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.population import FLEET, thing_name
from fedgrass.simulation.run import start_of
from fedgrass.simulation.settings import Simulation

_BEGINNING = datetime(2000, 1, 1, tzinfo=timezone.utc)  # of the simulated clock


def simulate_profile(
    bundle: Path | None,
    output: Path,
    *,
    statistics: dict[str, Any] | None = None,
    privacy: dict[str, Any] | None = None,
    done: Callable[[int], object] = lambda _: None,
    **options: Any,
) -> Profile:
    """Make the profile of a fleet of virtual devices, by two rounds if there are no bounds, and write it.

    Parameters
    ----------
    bundle
        The model whose inputs are described; the digits example if not given.
    output
        File to write.
    statistics
        As of a fleet's settings: ``bins``, ``low``, ``high``, ``max_rows``, ``leave_out``.
    privacy
        As of a fleet's settings, with ``mode`` central or local: what noise makes of the profile. That of devices (local) is
        another each time.
    done
        Told the number of each device that was measured.
    options
        Fields of `fedgrass.simulation.settings.Simulation`: ``data``, ``devices``, ``examples``, ``partition``, ``seed``.

    Raises
    ------
    ConfigurationError
        If an option is wrong.
    DataError
        If the data are missing or do not fit.

    Examples
    --------
    >>> import fedgrass
    >>> from fedgrass.data.digits import digits_bundle
    >>> profile = fedgrass.simulate_profile(digits_bundle(), Path("profile.json"), devices=5, examples=20)
    >>> profile.examples, profile.features[0].name, len(profile.features[0].histogram)
    (100.0, 'x[0,0,0]', 66)
    """
    settings = FleetSettings().overridden({"statistics": statistics or {}, "privacy": privacy or {}})
    # A file looked at whole is a fleet of one.
    if options.get("devices") == 1:
        settings = settings.overridden({"min_updates": 1})
    settings.overridden({"task": "statistics"})  # refuses what does not go with it, before anything is read
    devices = options.get("devices", Simulation.model_fields["devices"].default)
    cohort = min(devices, Simulation.model_fields["cohort"].default)
    base, simulation = start_of(bundle, {"cohort": cohort, **options, "fleet": settings})
    with tempfile.TemporaryDirectory(prefix="fedgrass-profile-") as scratch:
        examples = prepare(simulation, base.manifest, Path(scratch), keep_missing=True)
        # Without the operator's bounds a first round finds each feature's ends; the second has histograms between
        # them.
        profile = _round(1, base, simulation, examples, Path(scratch), None, done)
        if settings.statistics.low is None:
            profile = _round(2, base, simulation, examples, Path(scratch), profile, done)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, profile.to_json())
    return profile


def _round(
    number: int,
    base: Bundle,
    simulation: Simulation,
    examples: Examples,
    scratch: Path,
    earlier: Profile | None,
    done: Callable[[int], object],
) -> Profile:
    fleet = simulation.fleet.overridden({"task": "statistics"})
    wanted, sums, folder = fleet.statistics, tells_sums(fleet), scratch / f"round-{number}"
    folder.mkdir()
    announced = Announcement(
        fleet=FLEET,
        round=number,
        task="statistics",
        opened_at=_BEGINNING,
        deadline=_BEGINNING + timedelta(hours=1),
        base=Base.of(base.manifest, FLEET),
        cohort=Cohort(salt="profile"),
        update=fleet.announced_update,
        statistics=StatisticsTask(
            bins=wanted.bins, low=wanted.low, high=wanted.high, max_rows=wanted.max_rows if sums else None
        ),
        upload=Upload(bucket=FLEET, prefix=update_prefix(FLEET, number)),
    )
    for device in range(simulation.devices):
        thing = thing_name(device)
        path = folder / f"{thing}.safetensors"
        measure(examples.of(device), base.manifest, announced, thing, path, earlier)
        done(device)
    source = Folder(folder)
    expected = Expected(
        base_sha256=base.manifest.parameters_sha256,
        graph_sha256=base.manifest.graph_sha256,
        fleet=FLEET,
        round=number,
        checks=simulation.fleet.checks,
    )
    if sums:
        seed = hashlib.sha256(f"{simulation.seed}/noise/{number}".encode()).hexdigest()
        summed = SummedRound(announced, fleet, noise_of(fleet.privacy, seed), None, scratch)
        result, found = summed.combine(base, source, source.list(), expected, earlier)
        if found is None:
            raise DataError(
                f"{len(result.updates)} of {simulation.devices} devices measured; expected {fleet.min_updates}"
            )
        devices = len(result.updates)
        return summed_profile(found, base, devices, fleet=FLEET, number=number, made_at=_BEGINNING)
    layout = Layout.of(base.manifest, announced.statistics or StatisticsTask(), earlier)
    files = Collected.of(base, source, source.list(), layout, expected)
    profile, _ = make_profile(files, base, wanted, fleet=FLEET, number=number, made_at=_BEGINNING)
    return profile
