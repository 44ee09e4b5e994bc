"""Models of many kinds: exported, trained on the device's engine, and held against Keras or PyTorch.

``python -m benchmarks.models`` prints a row for each model of `benchmarks.zoo` and, last, one JSON line. For each:

- seconds of the export (without its self-test) and the graph's size;
- 15 steps of SGD from the same weights on the same batches with LiteRT and with Keras or PyTorch: the largest relative
  differences of a step's loss and of a tensor of weights, and the most that the peer's differ by from themselves when the
  weights were moved by 1e-7 before, four times. Layers that draw at random draw otherwise than the peer's, so theirs are not
  compared;
- steps for each second of the processor, ours over the peer's, in turns in one pair of processes, one thread each;
- peak memory of both, when they have trained; the peer's before it exports.

``--results FILE`` keeps a line of JSON for each model and goes on from there; ``python -m scripts.pages`` makes
docs/reference/models.md of docs/reference/models.jsonl. ``--family`` takes any module with ``MODELS``. Needs the extra
``authoring``, and PyTorch for its models.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import zoo
from benchmarks.models_peers import (
    Found,
    apart,
    beside,
    exported,
    is_torch,
    left_out,
    on_device,
    read,
    refused,
    relative,
    serve,
)
from benchmarks.paired import say

PATIENCE = 1800
"""Seconds that a step of a child may take."""


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--family", action="append", default=[], metavar="MODULE")
    parser.add_argument("--results", type=Path, metavar="FILE")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the processor, for each measurement of speed")
    parser.add_argument("--end", action="store_true", help="measure no more: enter what is not in FILE as not run")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    arguments = parser.parse_args()
    threads = str(arguments.threads)
    # TensorFlow reads them when it is imported, which happens in the processes started below.
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    families = arguments.family or _families()
    with tempfile.TemporaryDirectory() as scratch:
        results = arguments.results or Path(scratch) / "models.jsonl"
        for torch in (False, True):
            # A process for each framework: what a fork server has preloaded cannot be changed once it runs.
            chosen = [family for family in families if is_torch(family) == torch]
            how = (0.0 if arguments.end else arguments.seconds, arguments.threads)
            one = (chosen, arguments.only, results, *how)
            process = _SPAWN.Process(target=_run, args=(torch, *one))
            if chosen:
                process.start()
                process.join()
        found = read(results)
    if unknown := set(arguments.only) - found.keys():
        raise SystemExit(f"no such model: {', '.join(sorted(unknown))}")
    print("\n".join([_HEAD, *map(_row, found.values())]))
    print(json.dumps({"models": len(found), "results": list(found.values())}))


_SPAWN, _FORKED = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")
_TRAINS = (("keras",), ("torch", "torch._dynamo"))
"""What is imported by the process off which those that train in Keras, or in PyTorch, are forked. It saves seconds of each."""
_EXPORTS = ("keras", "fedgrass.authoring.export")
"""What besides by the one off which those that export are forked."""


def _run(torch: bool, families: list[str], only: list[str], results: Path, seconds: float, threads: int) -> None:
    """Measure the models of one framework that are not yet among the results."""
    _FORKED.set_forkserver_preload([*_TRAINS[torch], *_EXPORTS])
    wanted, known = _wanted(families, only), read(results)
    # Here too: the peer is forked off this very process.
    for module in _TRAINS[torch]:
        importlib.import_module(module)
    for number, (family, name) in enumerate(wanted, 1):
        if name in known and "not_run" not in known[name]:
            continue
        found = _measured(family, name, seconds, threads) if seconds else _not_run(family, name)
        say(f"{number} of {len(wanted)}: {_row(found)}")
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")


def _families() -> list[str]:
    names = [*zoo.KERAS, zoo.REFUSED[0]]
    if importlib.util.find_spec("torch") is None:
        say("PyTorch is not installed: its models are left out")
    else:
        names += [*zoo.TORCH, zoo.REFUSED[1]]
    return [f"benchmarks.zoo.{name}" for name in names]


def _wanted(families: list[str], only: list[str]) -> list[tuple[str, str]]:
    """Return families and names of models, found in a process that keeps no framework in this one."""
    found = []
    for family in families:
        with _FORKED.Pool(1) as pool:
            found += [(family, name) for name in pool.apply(_names, (family,))]
    return [one for one in found if not only or one[1] in only]


def _names(family: str) -> list[str]:
    return list(importlib.import_module(family).MODELS)


def _not_run(family: str, name: str) -> Found:
    return {"model": name, "family": family.rpartition(".")[2], "not_run": True}


def _measured(family: str, name: str, seconds: float, threads: int) -> Found:
    found: Found = {"model": name, "family": family.rpartition(".")[2], **_here()}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if family.endswith("refused"):
                with _Child(_FORKED, refused, family, name, Path(scratch)) as child:
                    child.next()
            else:
                found |= _trained(family, name, Path(scratch), seconds, threads)
        except _EndedError as error:
            found |= error.found
    return found


def _trained(family: str, name: str, folder: Path, seconds: float, threads: int) -> Found:
    with _Child(multiprocessing.get_context("fork"), beside, family, name, folder, threads) as peer:
        theirs = peer.next()
        # The peer is kept while the others work: speeds are measured in turns, so that a busy machine slows both.
        with _Child(_FORKED, exported, family, name, folder) as exporter:
            made = exporter.next()
        # Spawned, not forked: no framework may lie in the memory that is measured for the device.
        with _Child(_SPAWN, on_device, folder, threads, theirs["repeats"]) as device:
            ours = device.next()
            found = _compared(theirs, ours, made, folder) | _speeds(device, peer, seconds)
    found["cost_processor_seconds"] = round(peer.used + exporter.used + device.used, 1)
    return found


class _EndedError(Exception):
    def __init__(self, found: Found) -> None:
        super().__init__(str(found))
        self.found = found


class _Child:
    """A process that gives its findings one by one."""

    def __init__(self, context: Any, steps: Any, *arguments: Any) -> None:
        self.used = 0.0
        self._what, self._log = steps.__name__, tempfile.NamedTemporaryFile()  # noqa: SIM115 - closed with the process
        self._ours, theirs = multiprocessing.Pipe()
        target = (theirs, Path(self._log.name), steps, *arguments)
        self._process = context.Process(target=serve, args=target, daemon=True)
        self._process.start()
        # With a copy of it open here, recv would wait for ever for a child that has died.
        theirs.close()

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        # A closed pipe ends a child that waits for a word; one amid a long step is killed.
        self._process.join(2)
        self._process.kill()
        self._process.join()
        self._log.close()

    def next(self) -> Found:
        """Return the next; raises `_EndedError` with what is said of a model that has none."""
        try:
            self._ours.send(True)
            if not self._ours.poll(PATIENCE):
                raise _EndedError({"failed": f"{self._what}: no answer in {PATIENCE} s"})
            found: Found = self._ours.recv()
        # A crash or a lack of memory sends nothing: the last line of its output is all there is to tell.
        except (EOFError, OSError) as error:
            last = Path(self._log.name).read_text(errors="replace").strip().splitlines()[-1:]
            raise _EndedError({"failed": f"{self._what}: the process ended: {' '.join(last)[-300:]}"}) from error
        if "refused" in found:
            raise _EndedError(found)
        if "failed" in found:
            raise _EndedError({"failed": f"{self._what}: {found['failed']}"})
        self.used = found.pop("used")
        return found


_ENDS = {"failed", "refused"}


def _compared(theirs: Found, ours: Found, made: Found, folder: Path) -> Found:
    device, peer = (folder / f"{name}.npz" for name in ("litert", "peer"))
    found: Found = {key: value for key, value in made.items() if key not in ("random", "frozen")}
    found["memory_ratio"] = round(ours["rss_mb"] / theirs["rss_mb"], 2)
    found["rss_mb"] = [round(ours["rss_mb"]), round(theirs["rss_mb"])]
    if missing := left_out(device, peer, made["frozen"]):
        raise _EndedError({"failed": f"the bundle lacks {', '.join(missing)}"})
    # Two frameworks never draw the same numbers, so a difference would mean nothing.
    if made["random"]:
        return {**found, "parity": "draws at random"}
    return {
        **found,
        "loss_apart": relative(ours["losses"], theirs["losses"]),
        "weights_apart": apart(device, peer),
        "moved_loss_apart": max(relative(moved, theirs["losses"]) for moved in theirs["moved_losses"]),
        "moved_weights_apart": max(apart(moved, peer) for moved in folder.glob("moved*.npz")),
    }


_OURS = 0.3
"""Share of the seconds that is enough on the device's side, which takes many more steps in it."""


def _speeds(device: _Child, peer: _Child, seconds: float) -> Found:
    sums = [{"steps": 0, "processor": 0.0, "clock": 0.0} for _ in range(2)]
    wanted = (_OURS * seconds, seconds)
    # In turns until both have enough.
    while any(total["processor"] < least for total, least in zip(sums, wanted, strict=True)):
        for total, child in zip(sums, (device, peer), strict=True):
            if total["processor"] >= seconds:  # the other has too little yet
                continue
            found = child.next()
            for key in total:
                total[key] += found[key]
    ours, theirs = ({key: one["steps"] / one[key] for key in ("processor", "clock")} for one in sums)
    return {
        "speed_ratio": round(ours["processor"] / theirs["processor"], 2),
        "clock_ratio": round(ours["clock"] / theirs["clock"], 2),
        "steps_per_processor_second": [round(ours["processor"], 1), round(theirs["processor"], 1)],
    }


def _here() -> Found:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    # x86 alone names the processor there; elsewhere the architecture has to do.
    processors = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    machine = f"{(processors or [platform.machine()])[0]}, {os.cpu_count()} cores"
    return {"commit": commit.stdout.strip(), "date": time.strftime("%Y-%m-%d"), "machine": machine}


def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


_HEAD = "model | export s | graph KB | loss apart | weights apart (moved) | speed, ours/peer (by the clock) | memory, ours/peer"


def _row(found: Found) -> str:
    if "not_run" in found:
        return f"{found['model']} | not run"
    for end in _ENDS & found.keys():
        return f"{found['model']} | {end}: {found[end]}"
    parity = f"{found['parity']} | –" if "parity" in found else _parity(found)
    export = f"{found['export_processor_seconds']:.1f} | {found['graph_kb']}"
    speed = f"{found['speed_ratio']} ({found['clock_ratio']}) | {found['memory_ratio']}"
    return f"{found['model']} | {export} | {parity} | {speed} | {found['cost_processor_seconds']} s"


def _parity(found: Found) -> str:
    return f"{found['loss_apart']:.0e} | {found['weights_apart']:.0e} ({found['moved_weights_apart']:.0e})"


if __name__ == "__main__":
    main()
