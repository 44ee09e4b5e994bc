"""Many simulations that differ in some settings, side by side on all processors, and one page that compares them."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from fedgrass.errors import ConfigurationError, DataError, FedgrassError
from fedgrass.own_code import as_itself
from fedgrass.simulation import report
from fedgrass.simulation.records import Comparison
from fedgrass.simulation.run import simulate, start_of
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.store import Store, open_report

MOST_RUNS = 1000
_LONGEST_NAME = 200  # bytes of a folder's
_stop: Event | None = None  # of a process of the pool


def combinations(varied: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Return every combination of some settings' values, by a name that is also a folder's.

    Parameters
    ----------
    varied
        By setting, the values to try.

    Raises
    ------
    ConfigurationError
        If there are more than a thousand, or two of them would have one folder.

    Examples
    --------
    >>> list(combinations({"strategy": ["fedavg", "fedprox"], "fit.epochs": ["2"]}))
    ['strategy=fedavg,fit.epochs=2', 'strategy=fedprox,fit.epochs=2']
    """
    chosen = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    if len(chosen) > MOST_RUNS:
        raise ConfigurationError(
            f"sweep: {len(chosen)} runs; expected {MOST_RUNS} at most: vary fewer settings at once"
        )
    found: dict[str, dict[str, str]] = {}
    for one in chosen:
        name = _folder_name(",".join(f"{key}={value}" for key, value in one.items()))
        if name in found:
            raise ConfigurationError(f"sweep: two runs would be called {name!r}; give each value once")
        found[name] = one
    return found


def _folder_name(said: str) -> str:
    """Return what a run's folder is called: values may be paths, or anything else that no folder may be called."""
    name = re.sub(r"[^\w.=,+-]", "_", said)
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    # Bytes, not letters, are what file systems count; a letter that is cut in two goes.
    return f"{name.encode()[: _LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"


def sweep(
    output: Path,
    runs: Mapping[str, Mapping[str, Any]],
    *,
    processes: int | None = None,
    done: Callable[[str, str], None] = lambda name, failure: None,
) -> tuple[Comparison, dict[str, str]]:
    """Simulate each run in a folder of its own below ``output``, and compare them there.

    What an earlier call with the same runs has done stays done; a run that was broken off goes on after its last whole round.

    Parameters
    ----------
    output
        The folder; made if absent.
    runs
        By name, the options of `fedgrass.simulation.run.simulate`.
    processes
        Simulations at once; as many as there are processors if not given. The results do not depend on it.
    done
        Told of each run that has ended: its name, and why it failed, or nothing.

    Returns
    -------
    tuple
        The comparison of the runs that succeeded, and by name why others failed.

    Raises
    ------
    ConfigurationError
        If an option is wrong, or a folder holds another simulation; nothing was started then.
    DataError
        If no run succeeded.
    KeyboardInterrupt
        If it was interrupted: the rounds that are whole are kept.
    """
    # All of them first: a setting that is wrong in the last run must not be found after hours.
    left = {name: dict(options) for name, options in runs.items() if not _is_done(output / name, dict(options))}
    failures: dict[str, str] = {}
    for name in runs.keys() - left.keys():
        done(name, "")
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    workers = min(processes or os.cpu_count() or 1, max(1, len(left)))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(stop,)) as pool:
        waiting = {pool.submit(_run, output / name, options): name for name, options in left.items()}
        try:
            for future in as_completed(waiting):
                name = waiting[future]
                failures[name] = _outcome(future.result)
                done(name, failures[name])
        except BaseException:
            # What runs ends after its round, and what waits is not begun; the pool is left when all have ended.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failures = {name: failure for name, failure in failures.items() if failure}
    found = {name: open_report(output / name) for name in runs if name not in failures}
    if not found:
        raise DataError(
            f"sweep: none of {len(runs)} runs succeeded; the first: {next(iter(failures.values()), 'no runs')}"
        )
    return report.compare(found, output), failures


def _is_done(folder: Path, options: dict[str, Any]) -> bool:
    """Whether a run is over; raises `ConfigurationError` for wrong options, and where another one lies."""
    simulation = _simulation(options)
    store = Store(folder)
    if not store.has_rounds:
        return False
    try:
        report = open_report(folder)[0]
    except DataError:
        report = None
    store.require_same(simulation, report.rounds if report else 0)
    return report is not None and (bool(report.ended) or report.rounds == simulation.rounds)


def _simulation(options: dict[str, Any]) -> Simulation:
    given = dict(options)
    return start_of(given.pop("bundle", None), given)[1]


def _outcome(result: Callable[[], str]) -> str:
    try:
        return result()
    except BrokenProcessPool:
        return "its process died; was there too little memory? Give --processes fewer"


def _begin(stop: Event) -> None:
    """Prepare a process: Ctrl-C reaches all of them, and the first one decides."""
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_first, daemon=True).start()


def _end_with_the_first() -> None:
    """End when the process that leads has been killed: the same command, begun again, does what this one would go on with."""
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _run(folder: Path, options: dict[str, Any]) -> str:
    """Simulate, in a process of the pool; return why that failed, or nothing."""

    def look(_: object) -> None:
        if _stop is not None and _stop.is_set():
            raise KeyboardInterrupt

    try:
        simulate(folder, resume=Store(folder).has_rounds, workers=1, done=look, **options)
    except KeyboardInterrupt:
        return "interrupted"
    except FedgrassError as error:
        return f"{error.code}: {error}"
    except Exception as error:  # noqa: BLE001 - one run that fails takes no other with it
        return as_itself(error)
    return ""
