"""``python -m tests.secure_campaign``: the unmasked sum against plain integers, to the bit, and the bounds of the threat model.

Rounds of 1 to 1,000 devices, real boxes, helpers, locks and files: every number of helpers and of those that may collude, 16
and 32 bits, vectors that end at and beside every edge of a piece, values and counts at the ends of what the integers hold, 0 to
50 % of the devices gone, one or two groups. Of each round every choice of helpers is tried: those that are enough must give the
very sum, in 64-bit integers that share no code with it, and fewer must give nothing. Helpers are killed (SIGKILL) while they
sum, and go on; the job is killed while it adds up, and run again, before and after the helpers answered. Then each bound of
docs/secure-aggregation.md: as many colluders as it names must learn nothing, one more must win. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgrass.errors import AggregationError, HelpersMissingError, MessageError
from fedgrass.protocol.secure import SecureTask
from fedgrass.secure.check import judged
from fedgrass.secure.helper import HelperLimits
from fedgrass.secure.masked import masked, read_masked
from fedgrass.secure.masks import PIECE, Masked, dtype_of
from fedgrass.secure.quantize import examples_in, quantized
from fedgrass.secure.request import Candidate, SumRequest, requests_for
from fedgrass.secure.unmask import unmask
from fedgrass.update.header import UpdateHeader
from tests.fedgrass.secure.fleets import BASE, FLEET, asked, context_of, devices, helper, signer, task_of
from tests.fedgrass.secure.test_adversary import Cloud, opened_by

HELPERS = [(m, p) for m in range(2, 6) for p in range(1, m)]
KINDS = ("normal", "largest", "smallest", "one", "zero")
ALONE = HelperLimits(min_devices=1)
Wide = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Plan:
    """A round to try: ``kind`` says what devices have learnt, and ``gone`` which share of them vanishes."""

    helpers: int
    collude: int
    bits: int
    size: int
    asked: int
    gone: float
    kind: str
    groups: int = 1

    def task(self) -> SecureTask:
        """Return what is announced: as wide as these devices need, and no wider."""
        made = task_of(self.helpers, self.collude, bits=self.bits, most=self.asked, groups=self.groups)
        return SecureTask.model_validate({**made.model_dump(), "max_examples": 7, "value_range": 0.5})


def plans(chance: random.Random, more: int) -> Iterator[Plan]:
    """Yield every boundary with every number of helpers, every number of devices, and ``more`` at random."""
    for (m, p), bits in itertools.product(HELPERS, (16, 32)):
        extra = task_of(m, p, bits=bits, most=4).count_coordinates
        edges = {0, 1, 2, 31, 33, *(edge + beside for edge in (PIECE - extra, PIECE) for beside in (-1, 0, 1))}
        for size in sorted({*edges, 2 * PIECE + 3}):
            yield Plan(m, p, bits, size, chance.randint(2, 6), chance.choice([0, 0.3, 0.5]), chance.choice(KINDS))
    for bits, kind, count in itertools.product((16, 32), KINDS, [*range(1, 18), 63, 64, 65, 127, 128, 255, 256, 257]):
        m, p = chance.choice(HELPERS)
        yield Plan(m, p, bits, chance.choice([1, 9, 70]), count, chance.choice([0, 0.1, 0.3, 0.5]), kind)
    for gone, bits in itertools.product((0, 0.1, 0.3, 0.5), (16, 32)):
        yield Plan(3, 1, bits, 33, 1000, gone, chance.choice(KINDS), groups=2 if gone else 1)
    for _ in range(more):
        (m, p), count = chance.choice(HELPERS), chance.randint(1, 60)
        groups = chance.choice([1, 2]) if count > 40 else 1
        size, kind = chance.randint(0, 300), chance.choice(KINDS)
        yield Plan(m, p, chance.choice([16, 32]), size, count, chance.random() / 2, kind, groups)


def learnt(plan: Plan, draws: np.random.Generator) -> tuple[Any, int]:
    """Return what a device has learnt, and from how many examples."""
    if plan.kind == "normal":
        return draws.standard_normal(plan.size, np.float32) * np.float32(0.2), int(draws.integers(1, 9))
    # 7 examples are the most that count, 9 are more.
    value, examples = {"largest": (9.0, 9), "smallest": (-9.0, 7), "one": (0.5, 1), "zero": (0.0, 7)}[plan.kind]
    return np.full(plan.size, value, np.float32), examples


class Round:
    """A round's files, as devices uploaded them, and the plain sum of its integers by group: values, and examples."""

    def __init__(self, plan: Plan, folder: Path, seed: int) -> None:
        self.plan, self.folder, self.task = plan, folder, plan.task()
        self.files: dict[str, bytes] = {}
        self.plain: dict[int, Wide] = {}
        self.examples: Counter[int] = Counter()
        self.context = context_of(self.task)
        self.requests: list[SumRequest] = []
        for index in range(max(1, plan.asked - int(plan.asked * plan.gone))):
            self._device(f"thing-{index:04d}", np.random.default_rng([seed, index]))

    def _device(self, thing: str, draws: np.random.Generator) -> None:
        task, size = self.task, self.plan.size
        values, examples = learnt(self.plan, draws)
        header = UpdateHeader(fleet=FLEET, round=1, thing=thing, base_sha256=BASE, graph_sha256=BASE, num_examples=1)
        base = {"w": np.zeros(size, np.float32)}
        made = masked(base, {"w": values}, header, examples, task, self.context, signer(thing))
        self.files[thing] = made.to_bytes()
        whole = quantized(lambda: iter([values]), size, examples, task, seed=header.rounding_seed)[:size]
        signed = whole.view(f"<i{task.bits // 8}").astype(np.int64)
        counted = min(examples, task.max_examples)
        # By the description: the integers are next to what they stand for.
        exact = np.clip(values.astype(np.float64), -0.5, 0.5) / 0.5 * task.levels * counted / task.max_examples
        assert (np.abs(signed - exact) < 1 + 1e-6).all(), "an integer is not next to its value"
        group = task.group_of("salt", thing)
        self.plain[group] = self.plain.get(group, np.zeros(size, np.int64)) + signed
        self.examples[group] += counted

    def job(self) -> dict[int, Masked]:
        """Read and add up all files, have the boxes checked, and name the set, as the job does; returns the masked sums."""
        task, totals, named = self.task, dict[int, Masked](), []
        for thing, content in self.files.items():
            read = read_masked(io.BytesIO(content), len(content), self.plan.size, task)
            group = task.group_of("salt", thing)
            total = totals.setdefault(group, np.zeros(len(read.values), dtype_of(task.bits)))
            np.add(total, read.values, out=total)
            named.append(Candidate(thing, read.boxes, read.commitments, group))
        length = self.plan.size + task.count_coordinates
        checks = requests_for(named, self.context, length, task, check=True)
        found = {one.helper: helper(self.folder, one.helper, ALONE).check(one) for one in checks}
        assert not judged(checks[0].accepted, found).unopened, "a good box does not open"
        self.requests = requests_for(named, self.context, length, task)
        return totals

    def answer(self, index: int) -> Path:
        """Have a helper answer, as a new process of it would."""
        request = SumRequest.decode(self.requests[index].encode())
        path = self.folder / f"answer-{index}"
        helper(self.folder, index, ALONE).answer(request, path)
        return path

    def is_plain(self, totals: dict[int, Masked]) -> bool:
        """Say whether these sums are the plain ones, their sign and the number of examples included."""
        size, kind = self.plan.size, f"<i{self.task.bits // 8}"
        return totals.keys() == self.plain.keys() and all(
            np.array_equal(total[:size].view(kind).astype(np.int64), self.plain[group])
            and examples_in(total, self.task) == self.examples[group]
            for group, total in totals.items()
        )


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Do it in a process of its own, which gets SIGKILL after so long; returns whether it was not done yet."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def one_round(plan: Plan, seed: int, chance: random.Random, found: Counter[str], *, kills: bool) -> None:
    """Try a round with every choice of its helpers; raises `AssertionError` naming it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _try(Round(plan, Path(folder), seed), chance, found, kills=kills)
        except (AssertionError, MessageError) as error:
            raise AssertionError(f"{plan}, seed {seed}: {error}") from error


def _try(now: Round, chance: random.Random, found: Counter[str], *, kills: bool) -> None:
    if min(Counter(now.task.group_of("salt", thing) for thing in now.files).values()) < now.task.least_summed:
        return
    if kills and chance.random() < 0.3:
        found["jobs killed"] += killed(now.job, chance.random() * 0.02)
    totals = now.job()
    for index in range(now.plan.helpers):
        while kills and chance.random() < 0.4:
            found["helpers killed"] += killed(lambda index=index: now.answer(index), chance.random() * 0.02)  # type: ignore[misc]
    answers = {index: now.answer(index) for index in range(now.plan.helpers)}
    if chance.random() < 0.3:
        # A job that is run again finds the same set, which is all that helpers answer.
        before = [request.digest for request in now.requests]
        totals = now.job()
        assert before == [request.digest for request in now.requests], "a job that ran again named another set"
        found["jobs run again after the answers"] += 1
        answers = {index: now.answer(index) for index in range(now.plan.helpers)}
    for count in range(now.plan.helpers + 1):
        for who in itertools.combinations(range(now.plan.helpers), count):
            found["sums"] += 1
            found["wrong"] += not as_it_should(now, totals, {index: answers[index] for index in who})
    found["rounds"] += 1
    found["updates"] += len(now.files)


def as_it_should(now: Round, totals: dict[int, Masked], answers: dict[int, Path]) -> bool:
    """Say whether so many helpers open the plain sum, or leave it shut, by how many they are."""
    mine = {group: total.copy() for group, total in totals.items()}
    try:
        unmask(mine, now.requests[0].accepted, answers)
    except (HelpersMissingError, AggregationError):
        return len(answers) <= now.plan.collude
    return len(answers) > now.plan.collude and now.is_plain(mine)


def bounds(found: Counter[str]) -> None:
    """Hold every bound: so many colluders learn nothing, and one more wins."""

    def holds(name: str, by: int, most: int, won: bool) -> None:
        found[f"{name}: tried"] += 1
        found["bounds broken too early, or not by one more"] += won != (by > most)

    for m, p in HELPERS:
        task = task_of(m, p)
        (one, *_) = devices(2, 8, task)
        for count in range(m + 1):
            for bad in itertools.combinations(range(m), count):
                holds("colluders that know one update", count, p, opened_by(bad, one, task))
        with tempfile.TemporaryDirectory() as folder:
            some = devices(6, 5, task)
            cloud = Cloud(task, {"all": some, "without-one": some[1:]}, Path(folder))
            for bad_ones in range(p + 1):
                # Two sets stay shut below 2p + 2 - m bad helpers.
                holds("bad helpers that open two sets", bad_ones, 2 * p + 1 - m, cloud.most_opened(bad_ones) >= 2)
        noisy = task_of(m, p, noise=0.5)
        for adding, count in itertools.product(range(p + 1, m + 1), range(m)):
            if count < adding:
                left = noisy.share_steps(adding) * (adding - count) ** 0.5
                holds("colluders that take noise off", count, p, left < noisy.noise_steps)
    for least, count in itertools.product((1, 2, 3, 10), range(1, 12)):
        with tempfile.TemporaryDirectory() as folder:
            task, limits = task_of(), HelperLimits(min_devices=least)
            request = asked(devices(count, 2, task), task)[0]
            try:
                helper(Path(folder), 0, limits).answer(request, Path(folder) / "answer")
                summed = True
            except MessageError:
                summed = False
            holds("devices that a helper's owner asks for", count, least - 1, summed)


def campaign(more: int, seed: int = 0, most: int | None = None, *, kills: bool = True) -> dict[str, int]:
    """Try ``most`` of the rounds (None: all, and the bounds); returns how many of what there were.

    Without ``kills`` no process is forked, as beside a test runner's threads.
    """
    chance, found = random.Random(seed), Counter(dict.fromkeys(("rounds", "sums", "wrong", "updates"), 0))
    tried = list(plans(chance, more))
    if most is not None:
        tried = chance.sample(tried, most)
    for number, plan in enumerate(tried):
        one_round(plan, seed + number, chance, found, kills=kills)
    found["bounds broken too early, or not by one more"] = 0
    if most is None:
        bounds(found)
    return dict(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more", type=int, default=300, help="rounds at random, beside those at every boundary")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    print(json.dumps({**campaign(arguments.more, arguments.seed), "seconds": round(time.monotonic() - began)}))
