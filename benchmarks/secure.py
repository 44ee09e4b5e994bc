"""Secure aggregation: bytes, seconds and memory of device, helper and cloud, beside Flower's SecAgg+.

``python -m benchmarks.secure --peers-python PYTHON`` prints one JSON line. Each part is a process of its own, so that its peak
memory is its own. Ours is what runs in the field: `fedgrass.secure.masked` on a device, `Helper.answer` with real boxes, the
aggregator's reading and unmasking. End to end, 100 devices mask a million parameters each, 30 vanish, helpers check the boxes,
one of them falls silent, and the sum is held against that of the plain integers. At 1,000 and 10,000 devices helper and cloud
are measured: the helper checks, opens and sums as many real boxes; the cloud reads 16 different updates in turn. Flower's is
its own workflow and client mod, joined by a loop in one process, with 100 clients of which 30 vanish before their third message
(`benchmarks.secure_peers`).
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgrass.protocol import secure
from fedgrass.protocol.messages import UpdateTask
from fedgrass.secure.check import judged
from fedgrass.secure.helper import Helper
from fedgrass.secure.masked import MaskedUpdate, masked, read_masked
from fedgrass.secure.masks import SEED_BYTES, commitment
from fedgrass.secure.quantize import mean_of, quantized
from fedgrass.secure.request import Candidate, requests_for
from fedgrass.secure.sealing import Context, seal
from fedgrass.secure.unmask import unmask
from fedgrass.update.header import UpdateHeader
from fedgrass.update.writer import encode_update

FLEET, BASE, GRAPH = "bench", "ab" * 32, "cd" * 32
HELPERS, COLLUDE = 3, 1
_PEERS = Path(__file__).with_name("secure_peers.py")


def main() -> None:
    """Run the benchmark, or one part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--devices", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--end-to-end", type=int, nargs="*", default=[100], help="devices of the rounds that are whole")
    parser.add_argument("--bits", type=int, choices=[16, 32], default=16)
    parser.add_argument("--peers-python", type=Path, help="an interpreter with flwr")
    parser.add_argument("--shares", type=int, default=31, help="SecAgg+: neighbours of a client, odd")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=100, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        with tempfile.TemporaryDirectory(prefix="fedgrass-benchmark-") as folder:
            print(json.dumps(PARTS[given.part](Path(folder), given)))
        return
    print(json.dumps(measure(given)))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return all figures; each is told on stderr as soon as it is there."""
    found: dict[str, Any] = {
        "benchmark": "secure",
        "parameters": given.parameters,
        "bits": given.bits,
        "helpers": HELPERS,
        "collude": COLLUDE,
        "device": part(given, "device", 100),
    }
    for count in given.end_to_end:
        found[f"end_to_end_{count}"] = part(given, "end_to_end", count)
    # Before the long parts: an interpreter without flwr shows at once.
    if given.peers_python and 100 in given.end_to_end:
        found["flower_secaggplus"] = flower(given)
        for name in ("seconds", "processor_seconds"):
            ratio = found["flower_secaggplus"][name] / found["end_to_end_100"][name]
            found[f"ratio_flower_end_to_end_{name}"] = round(ratio, 1)
    for count in given.devices:
        found[f"helper_{count}"] = part(given, "helper", count)
        found[f"cloud_{count}"] = part(given, "cloud", count)
    return found


def flower(given: argparse.Namespace) -> Any:
    """Run Flower's SecAgg+ with 100 clients, of which 30 vanish."""
    argv = [str(given.peers_python), str(_PEERS), "--parameters", str(given.parameters), "--clients", "100"]
    return told("flower, 100 clients", run([*argv, "--dropped", "30", "--shares", str(given.shares)]))


def part(given: argparse.Namespace, name: str, count: int) -> Any:
    """Run a part in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.secure", "--part", name, "--count", str(count)]
    argv += ["--parameters", str(given.parameters), "--bits", str(given.bits)]
    return told(f"{name}, {count} devices", run(argv))


def told(name: str, line: str) -> Any:
    """Say what was measured, so that nothing is lost if a later part fails; returns it."""
    print(f"{name}: {line}", file=sys.stderr, flush=True)
    return json.loads(line)


def run(argv: list[str]) -> str:
    """Return the last line that a program prints."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]


def helpers_in(folder: Path) -> list[Helper]:
    """Make the helpers."""
    return [Helper(folder / f"helper-{index}", FLEET) for index in range(HELPERS)]


def task_of(helpers: list[Helper], bits: int, most: int) -> secure.SecureTask:
    """Return what is announced."""
    named = tuple(secure.Helper(name=f"h{index}", key=one.public_key) for index, one in enumerate(helpers))
    return secure.SecureTask.model_validate(
        {"helpers": named, "collude": COLLUDE, "bits": bits, "most": most, "value_range": 0.1, "equal": True}
    )


def context_of(task: secure.SecureTask) -> Context:
    """Return what boxes are bound to."""
    return Context(FLEET, 1, "salt", BASE, task.bits, task.collude)


def model(parameters: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return a base of some tensors."""
    return {f"w{index}": np.zeros(parameters // 10, np.float32) for index in range(10)}


def trained(index: int, base: Any) -> Any:
    """Return what a device has learnt."""
    draws = np.random.default_rng(index)
    return {name: draws.standard_normal(value.size, np.float32) * np.float32(0.01) for name, value in base.items()}


def update_of(index: int, base: Any, task: secure.SecureTask, local: Any = None) -> tuple[MaskedUpdate, Any]:
    """Return a device's masked update, and what it trained."""
    local = local or trained(index, base)
    header = UpdateHeader(fleet=FLEET, round=1, thing=f"t{index}", base_sha256=BASE, graph_sha256=GRAPH, num_examples=1)
    return masked(base, local, header, 100, task, context_of(task), Ed25519PrivateKey.generate()), local


def device(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Mask an update, beside the plain int8 one."""
    task, base = task_of(helpers_in(folder), given.bits, given.count), model(given.parameters)
    before = peak_mb()
    # Once before: imports and first allocations count for nobody.
    update_of(0, base, task)
    began = time.perf_counter()
    processor = time.process_time()
    update, local = update_of(1, base, task)
    update.save(folder / "update")
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    peak = peak_mb()
    began = time.perf_counter()
    plain = encode_update(base, local, update.header, UpdateTask(codec="int8")).to_bytes()
    plain_seconds = time.perf_counter() - began
    size = (folder / "update").stat().st_size
    return {
        "bytes": size,
        "bytes_over_int8": round(size / len(plain), 3),
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "int8_seconds": round(plain_seconds, 3),
        "peak_rss_mb": peak,
        "above_the_model_mb": round(peak - before, 1),
        "messages": 1,
    }


def end_to_end(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Masks, uploads, a check, sums and the mean; 30 % of the devices vanish, and a helper after the check."""
    helpers, base = helpers_in(folder), model(given.parameters)
    task = task_of(helpers, given.bits, given.count)
    stayed = given.count * 7 // 10
    taken = {name: np.zeros(2) for name in ("devices", "cloud", "helpers")}
    total = np.zeros(given.parameters + task.count_coordinates, f"<u{given.bits // 8}")
    plain, named = np.zeros_like(total), []
    for index in range(stayed):
        local = trained(index, base)
        began = clocks()
        update, _ = update_of(index, base, task, local)
        content = update.to_bytes()
        taken["devices"] += clocks() - began
        np.add(plain, integers_of(update, local, task), out=plain)
        began = clocks()
        read = read_masked(io.BytesIO(content), len(content), given.parameters, task)
        np.add(total, read.values, out=total)
        named.append(Candidate(read.header.thing, read.boxes, read.commitments))
        taken["cloud"] += clocks() - began
    began = clocks()
    checks = requests_for(named, context_of(task), len(total), task, check=True)
    requests = requests_for(named, context_of(task), len(total), task)
    taken["cloud"] += clocks() - began
    began = clocks()
    checked = judged(checks[0].accepted, {one.helper: helpers[one.helper].check(one) for one in checks})
    assert not checked.unopened
    answers = {index: folder / f"answer-{index}" for index in range(task.needed)}  # the third is missing
    for index, path in answers.items():
        helpers[index].answer(requests[index], path)
    taken["helpers"] += clocks() - began
    began = clocks()
    unmask({0: total}, requests[0].accepted, answers)
    mean_of(total, stayed, task)
    taken["cloud"] += clocks() - began
    return {
        "devices": given.count,
        "vanished": given.count - stayed,
        "seconds": round(sum(float(value[0]) for value in taken.values()), 2),
        "seconds_of": {name: round(float(value[0]), 2) for name, value in taken.items()},
        "processor_seconds": round(sum(float(value[1]) for value in taken.values()), 2),
        "integers_that_differ_from_the_plain_sum": int((total != plain).sum()),
        "peak_rss_mb": peak_mb(),
    }


def clocks() -> Any:
    """Return seconds by the clock, and of the processor: of these other work on the machine takes none."""
    return np.array([time.perf_counter(), time.process_time()])


def integers_of(update: MaskedUpdate, local: Any, task: secure.SecureTask) -> Any:
    """Return a device's integers without masks: the base is zero, so the difference is what it trained."""
    size = sum(value.size for value in local.values())
    return quantized(lambda: iter(local.values()), size, 100, task, seed=update.header.rounding_seed)


def boxes_of(count: int, task: secure.SecureTask) -> list[Candidate]:
    """Return the boxes of so many devices, with seeds of their own."""
    found = []
    signer = Ed25519PrivateKey.generate()
    for index in range(count):
        seeds = [np.random.default_rng([index, mask]).bytes(SEED_BYTES) for mask in range(len(task.masks))]
        boxes = tuple(
            seal([seeds[mask] for mask in task.known_to(number)], context_of(task), f"t{index}", one, signer)
            for number, one in enumerate(task.helpers)
        )
        found.append(Candidate(f"t{index}", boxes, b"".join(map(commitment, seeds))))
    return found


def helper(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One helper's sums for so many devices."""
    helpers = helpers_in(folder)
    task = task_of(helpers, given.bits, given.count)
    length = given.parameters + task.count_coordinates
    content = requests_for(boxes_of(given.count, task), context_of(task), length, task)[0].encode()
    (folder / "request").write_bytes(content)
    # In a process of its own, because peak memory is a process's, and this one made all boxes.
    program = (
        "import sys, time, json, resource; from pathlib import Path; from fedgrass.secure.helper import Helper\n"
        "from fedgrass.secure.request import SumRequest\n"
        f"folder = Path({str(folder)!r}); one = Helper(folder / 'helper-0', {FLEET!r}); began = time.perf_counter()\n"
        "request = SumRequest.decode((folder / 'request').read_bytes())\n"
        "assert not one.check(request.model_copy(update={'check': True})).unopened\n"
        "checked = time.perf_counter() - began; one.answer(request, folder / 'answer')\n"
        "taken = [checked, time.perf_counter() - began, time.process_time()]\n"
        "print(json.dumps([*taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))\n"
    )
    checked, seconds, processor, peak = json.loads(run([sys.executable, "-c", program]))
    return {
        "devices": given.count,
        "check_seconds": round(checked, 2),
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "peak_rss_mb": round(peak, 1),
        "bytes_down": len(content),
        "bytes_up": (folder / "answer").stat().st_size,
    }


def cloud(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Read and add so many updates, of which 16 are different; the unmasking is in `end_to_end`."""
    task, base = task_of(helpers_in(folder), given.bits, given.count), model(given.parameters)
    for index in range(16):
        update_of(index, base, task)[0].save(folder / str(index))
    size = (folder / "0").stat().st_size
    total = np.zeros(given.parameters + task.count_coordinates, f"<u{given.bits // 8}")
    began, processor = time.perf_counter(), time.process_time()
    for index in range(given.count):
        with (folder / str(index % 16)).open("rb", buffering=0) as stream:
            found = read_masked(stream, (folder / str(index % 16)).stat().st_size, given.parameters, task)
        np.add(total, found.values, out=total)
    seconds, processor = time.perf_counter() - began, time.process_time() - processor
    return {
        "devices": given.count,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "bytes": size * given.count,
        "peak_rss_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Return this process's peak resident memory."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


PARTS = {"device": device, "end_to_end": end_to_end, "helper": helper, "cloud": cloud}

if __name__ == "__main__":
    main()
