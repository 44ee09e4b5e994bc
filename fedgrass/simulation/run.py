"""A simulation from its options to its report: what the command line and the Python API call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedgrass.bundle import Bundle
from fedgrass.data.digits import digits_bundle
from fedgrass.errors import ConfigurationError
from fedgrass.simulation import report
from fedgrass.simulation.cluster import cluster_of
from fedgrass.simulation.records import SimulatedRound, SimulationReport, Timing
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.simulator import Simulator
from fedgrass.simulation.store import Store


def simulate(
    output: Path,
    *,
    bundle: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    ray: str = "",
    done: Callable[[SimulatedRound], None] = lambda _: None,
    **options: Any,
) -> SimulationReport:
    """Simulate federated rounds and write the report, and the model that came of them, into a folder.

    Parameters
    ----------
    output
        The folder; made if absent.
    bundle
        The model to start from; the digits example if not given.
    resume
        Whether to go on with what the folder holds. More rounds may be asked for than before; the rest must be the same.
    workers
        Processes; as many as there are processors if not given. The result does not depend on it.
    ray
        A Ray cluster whose machines train (`fedgrass.simulation.cluster.cluster_of`); this one, if not given.
    done
        Told of each round.
    options
        Fields of `fedgrass.simulation.settings.Simulation`.

    Returns
    -------
    SimulationReport
        Of all rounds, those before a resumption too.

    Raises
    ------
    ConfigurationError
        If an option is wrong, the folder holds another simulation, or another process is at work there.
    DataError
        If the data are missing or do not fit.
    KeyboardInterrupt
        If it was interrupted: what is whole is saved, the report written.

    Examples
    --------
    >>> import fedgrass
    >>> report = fedgrass.simulate(Path("simulated"), devices=6, cohort=3, rounds=1, workers=1, fleet={})
    >>> report.final.accuracy is not None, Path("simulated/model/model.json").is_file()
    (True, True)
    """
    opened, simulation = start_of(bundle, options)
    if simulation.groups:
        raise ConfigurationError(f"groups {simulation.groups}: several models come of it; simulate_groups() has them")
    manifest = opened.manifest
    cluster = cluster_of(ray)
    store = Store(output)
    if resume:
        store.require_same(simulation)  # before its lock: a folder that holds nothing stays as it is
    with store.alone():
        # Before any process starts: a wrong folder is told at once.
        standing = store.resume(simulation) if resume else None
        if not resume:
            store.begin(simulation)
        began = time.monotonic()
        with Simulator(simulation, opened, store, workers=workers, standing=standing, cluster=cluster) as simulator:
            started, ready_at = time.monotonic(), time.time()
            before = len(simulator.standing.rounds)
            spent = processor_seconds(simulator.process_ids)
            try:
                simulator.run(done)
            # After Ctrl-C as well: what is done is reported, and can be resumed.
            finally:
                rounds = simulator.standing.rounds
                seconds, spent = time.monotonic() - started, processor_seconds(simulator.process_ids) - spent
                timing = timing_of(ready_at, started - began, seconds, spent, rounds[before:], simulator.process_ids)
                # Nothing to report before the first round was closed.
                if rounds:
                    last = simulator.standing
                    found = report.summarise(simulation, manifest, rounds, timing).model_copy(
                        update={"ended": simulator.ended}
                    )
                    report.write_model(opened, last.parameters, last.version, found.final, output / "model")
                    report.write(found, rounds, output)
    return found


def start_of(bundle: Path | None, options: dict[str, Any]) -> tuple[Bundle, Simulation]:
    """Return the model that a simulation begins with, the digits example if none is named, and the checked options."""
    opened = Bundle.open(digits_bundle() if bundle is None else bundle)
    # Every byte, once: the same model is trained from by all processes for the whole run.
    opened.verify()
    manifest = opened.manifest
    # They are part of what a simulation is: it cannot be resumed with another model.
    digests = {"parameters_sha256": manifest.parameters_sha256, "graph_sha256": manifest.graph_sha256}
    return opened, Simulation.checked({**options, **digests})


def timing_of(
    ready_at: float,
    start_seconds: float,
    seconds: float,
    spent: float,
    rounds: Sequence[SimulatedRound],
    processes: Sequence[int],
) -> Timing:
    """Return what some rounds took.

    Parameters
    ----------
    ready_at
        The Unix time at which the first began.
    start_seconds
        What had gone by until then.
    seconds
        What the rounds took.
    spent
        What they took of the processors.
    rounds
        The rounds; those of several models are counted as often.
    processes
        Those that train.
    """
    # Only those that trained for their round count as device-rounds, or whose late update counts in it.
    trained = sum(max(one.asked - one.dropped - one.late, len(one.report.updates)) for one in rounds)
    return Timing(
        workers=len(processes),
        ready_at=ready_at,
        start_seconds=round(start_seconds, 2),
        rounds=len({one.report.round for one in rounds}),
        seconds=round(seconds, 4),
        processor_seconds=round(spent, 4),
        device_rounds=trained,
        device_rounds_per_second=round(trained / seconds, 1),
        peak_rss_mb=round(sum(map(_peak_rss_mb, [os.getpid(), *processes])), 1),
    )


def _peak_rss_mb(process: int) -> float:
    """Return a process's peak resident memory; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def processor_seconds(processes: Sequence[int]) -> float:
    """Return what this process and others have used of the processors; 0 where the system does not tell."""
    found = 0
    for process in (os.getpid(), *processes):
        for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with suppress(OSError, ValueError):  # a thread that has just ended
                found += int(path.read_text().split()[0])
    return found / 1e9
