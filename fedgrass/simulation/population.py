"""The devices that are not there: who is asked, who is slow, who lies, and when each would answer.

What a device reported decides only where settings say so (``cohort.by_loss``): then each round is opened after the one before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.cohort import is_asked
from fedgrass.protocol.messages import ByLoss, Cohort
from fedgrass.protocol.utility import choose
from fedgrass.simulation.settings import Attack, Simulation, Stragglers
from fedgrass.simulation.stream import Stream, StreamRound

# Python's own SHA-256, as its module random takes SHA-512: OpenSSL's, behind hashlib, takes longer to begin than a name to hash.
_sha256: Callable[[bytes], hashlib._Hash] = hashlib.sha256
for _module in ("_sha2", "_sha256"):  # from Python 3.12 on, and before
    with suppress(ImportError):
        _sha256 = import_module(_module).sha256
        break

FLEET = "simulation"
TYPICAL_SECONDS = 60.0
"""Simulated seconds that a device needs, in the middle, from hearing of a round to its update in the cloud."""

_TOGETHER = 1 << 16  # lots that are drawn at once
_REMEMBERED = 64  # rounds whose opening need not be worked out again
_SPREAD = 0.25  # standard deviation of the logarithm of what devices need
_ATTACKERS, _SLOW, _ANSWERS, _SPEED = 1, 2, 3, 4  # streams of random numbers that do not depend on one another


@dataclass(frozen=True)
class Plan:
    """What becomes of those asked in a round. ``seconds`` is how long the round waits, by the simulated clock.

    ``late`` are those who answer after its end, with the seconds from its opening. ``parts`` are those of the answers that are
    not done when the time is up, with the share of their training that they send.
    """

    asked: tuple[int, ...]
    answers: tuple[int, ...]
    late: Mapping[int, float]
    dropped: int
    seconds: float
    parts: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignments:
    """What devices do in a round: some answer in time; the updates of others come later, to rounds that still want them.

    ``arrived`` are the updates of earlier rounds that come now: round and device of each. ``parts`` are as of `Plan`.
    """

    answers: Sequence[int]
    late: Sequence[int] = ()
    arrived: Sequence[tuple[int, int]] = ()
    parts: Mapping[int, float] = field(default_factory=dict)

    def devices(self) -> set[int]:
        """Return all of them."""
        return {*self.answers, *self.late, *(device for _, device in self.arrived)}

    def of(self, devices: Collection[int]) -> Assignments:
        """Return what is for these devices to do."""
        return Assignments(
            [device for device in self.answers if device in devices],
            [device for device in self.late if device in devices],
            [(number, device) for number, device in self.arrived if device in devices],
            {device: share for device, share in self.parts.items() if device in devices},
        )


class Population:
    """Virtual devices: each is a number. What they are follows from the seed, so none of it is kept."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.attack = Attack.parse(simulation.attack) if simulation.attack else None
        self._opened: dict[int, tuple[Cohort, Plan]] = {}
        self._stream = self._stream_of(simulation)
        self._losses: dict[int, tuple[int, float]] = {}

    @cached_property
    def attackers(self) -> frozenset[int]:
        """The devices that attack."""
        return self._some(self.attack.share if self.attack else 0.0, _ATTACKERS)

    def opened(self, number: int) -> tuple[Cohort, Plan]:
        """Return who is asked in a round, and what becomes of them, which stays as it was first worked out."""
        if number not in self._opened:
            cohort, asked = self.cohort(number)
            plan = self.plan(number, asked) if self._stream is None else _plan_of(self._stream.round(number))
            self._opened[number] = cohort, plan
            # Bounded: a run may have a million rounds.
            self._opened.pop(number - _REMEMBERED, None)
        return self._opened[number]

    def reported(self, number: int, losses: Mapping[int, float]) -> None:
        """Note the loss that each device reported with its update in a round, before the next one is opened."""
        if self._simulation.fleet.cohort.chooses_by_loss:
            self._losses |= {device: (number, loss) for device, loss in losses.items()}

    def duties(self, number: int, staleness: int) -> Assignments:
        """Return what devices do in a round, if updates are wanted that are late by up to ``staleness`` rounds.

        A round opens when the one before it ends: what comes in between is there for the next job.
        """
        plan = self.opened(number)[1]
        if staleness == 0:
            return Assignments(plan.answers, parts=plan.parts)
        holds_back = self.attack is not None and self.attack.does.holds_back
        found = (self._with_held_back if holds_back else self._duties)(number, staleness)
        return replace(found, parts=plan.parts)

    def _with_held_back(self, number: int, staleness: int) -> Assignments:
        """Return the duties of a round in which attackers hold their updates back, to send as many as count at once."""
        duties = self._duties(number, staleness)
        # Once in so many rounds: that is how many updates of one device a strategy still takes.
        if number % (staleness + 1) == 0:
            held = [
                (e, d) for e in range(number - staleness, number) for d in self._answering(e) if d in self.attackers
            ]
            return Assignments(duties.answers, duties.late, [*duties.arrived, *held])
        in_time = [device for device in duties.answers if device not in self.attackers]
        back = [device for device in duties.answers if device in self.attackers]
        return Assignments(in_time, [*duties.late, *back], duties.arrived)

    def _answering(self, number: int) -> Sequence[int]:
        return self.opened(number)[1].answers

    def _duties(self, number: int, staleness: int) -> Assignments:
        plan = self.opened(number)[1]
        if self._stream is not None:
            return Assignments(plan.answers, list(plan.late), self._stream.round(number).arrived)
        seconds = {
            other: self.opened(other)[1].seconds for other in range(max(1, number - staleness), number + staleness + 1)
        }
        # What comes later than this no round takes, so it need not be trained.
        until = sum(seconds[other] for other in range(number, number + staleness + 1))
        arrived = []
        for earlier in range(max(1, number - staleness), number):
            begin = sum(seconds[other] for other in range(earlier, number))
            late = self.opened(earlier)[1].late
            arrived += [(earlier, device) for device, after in late.items() if begin < after <= begin + plan.seconds]
        return Assignments(plan.answers, [device for device, after in plan.late.items() if after <= until], arrived)

    def cohort(self, number: int) -> tuple[Cohort, list[int]]:
        """Return who is asked in a round: by the real lots, with a fraction that takes exactly as many as wanted."""
        simulation, asked = self._simulation, self._simulation.asked
        if rounds := simulation.fleet.strategy.tree:
            return self._piece(number - 1, rounds)
        if simulation.fleet.cohort.chooses_by_loss:
            return self._by_loss(number)
        fair = simulation.fleet.cohort.fair
        # A fair fleet keeps its circle, and takes one piece of it after the other.
        salt = hashlib.sha256(f"{simulation.seed}/{0 if fair else number}".encode()).hexdigest()[:16]
        if asked == simulation.devices:
            return Cohort(salt=salt), list(range(simulation.devices))
        lots = _draws(salt, simulation.devices)
        if not fair:
            # The lot that is the first beyond: exactly `asked` lots are smaller.
            fraction = float(np.partition(lots, asked)[asked])
            return Cohort(salt=salt, fraction=fraction), [int(device) for device in np.flatnonzero(lots < fraction)]
        order, start = np.argsort(lots), (number - 1) * asked % len(lots)
        chosen = np.sort(order[(start + np.arange(asked)) % len(lots)])
        ends = [
            float(lots[order[at - 1]] + lots[order[at]]) / 2 if at else 0.0
            for at in (start, (start + asked) % len(lots))
        ]
        cohort = Cohort(salt=salt, begin=ends[0], fraction=(ends[1] - ends[0]) % 1.0, fair=True)
        return cohort, [int(device) for device in chosen]

    def _by_loss(self, number: int) -> tuple[Cohort, list[int]]:
        """Return who is asked by lot and by loss, as `fedgrass.cloud.rounds.cohorts.choose_by_loss` opens a fleet's round."""
        simulation, wanted = self._simulation, self._simulation.fleet.cohort.by_loss
        salt = hashlib.sha256(f"{simulation.seed}/{number}".encode()).hexdigest()[:16]
        lots = _draws(salt, simulation.devices)
        since = max(1, number - wanted.max_age)
        losses = {device: loss for device, (told, loss) in self._losses.items() if since <= told < number}
        found = choose(
            lots.tolist(),
            [losses.get(device) for device in range(simulation.devices)],
            simulation.asked,
            candidates=wanted.candidates,
            explore=wanted.explore,
        )
        cohort = Cohort(
            salt=salt,
            fraction=found.fraction,
            by_loss=ByLoss(explore=found.explore, loss=found.loss, since=since),
        )
        asked = [d for d in range(simulation.devices) if is_asked(cohort, thing_name(d), losses.get(d))]
        return cohort, asked

    def _piece(self, before: int, rounds: int) -> tuple[Cohort, list[int]]:
        """Return the piece of the fleet that a round with a tree of noise asks, after so many rounds."""
        circle, place = divmod(before, rounds)
        salt = hashlib.sha256(f"{self._simulation.seed}/tree/{circle}".encode()).hexdigest()[:16]
        cohort = Cohort(salt=salt, fraction=1 / rounds, begin=place / rounds)
        lots = _draws(salt, self._simulation.devices)
        found = np.flatnonzero((lots - cohort.begin) % 1.0 < cohort.fraction)
        if not len(found):
            raise ConfigurationError(
                f"strategy {self._simulation.fleet.strategy.name}: of {self._simulation.devices} devices none is asked in round "
                f"{before + 1}; lower its rounds ({rounds}), or simulate more devices"
            )
        return cohort, [int(device) for device in found]

    def plan(self, number: int, asked: list[int]) -> Plan:
        """Return who answers when: the round ends when the quorum has, or at the deadline."""
        fleet, seconds = self._simulation.fleet, self._needs(number, asked)
        alive = np.isfinite(seconds)
        size = fleet.cohort.size
        # 1e-9 keeps 0.07 * 100, which is a little more than 7, from needing 8.
        quorum = size if 0 < size <= len(asked) else max(1, math.ceil(fleet.quorum * len(asked) - 1e-9))
        deadline = float(fleet.deadline_seconds)
        parts: dict[int, float] = {}
        if fleet.takes_partial_work:
            # They upload within the margin, and so are there at the deadline; work goes on evenly until its end.
            margin = float(fleet.fit.partial_margin_seconds)
            short = alive & (seconds > deadline)
            parts = {asked[place]: (deadline - margin) / float(seconds[place]) for place in np.flatnonzero(short)}
            seconds = np.where(short, deadline, seconds)
        end = min(float(np.partition(seconds, quorum - 1)[quorum - 1]), deadline)
        return Plan(
            asked=tuple(asked),
            answers=_chosen(asked, seconds <= end),
            late={asked[place]: float(seconds[place]) for place in np.flatnonzero(alive & (seconds > end))},
            dropped=int((~alive).sum()),
            seconds=end,
            parts=parts if end == deadline else {},
        )

    def _needs(self, number: int, asked: list[int]) -> NDArray[np.float64]:
        """Return the seconds [n] that devices need for a round; infinity for those that never answer."""
        rng = np.random.default_rng((self._simulation.seed, _ANSWERS, number))
        alive = rng.random(len(asked)) >= self._simulation.dropout
        slower = np.array([self._slowness(device) if device in self._slow else 1.0 for device in asked])
        # Log-normal, which is how the times of many machines spread: never negative, with a few that are far slower.
        seconds: NDArray[np.float64] = TYPICAL_SECONDS * np.exp(_SPREAD * rng.standard_normal(len(asked))) * slower
        seconds[~alive] = math.inf
        return seconds

    def _slowness(self, device: int) -> float:
        """Return how many times as long a straggler needs."""
        factor = self._stragglers.factor
        if not self._stragglers.spread:
            return factor
        # Two standard deviations to either side of the middle: 1 in 20 has the least factor or the greatest.
        place = 0.5 + np.random.default_rng((self._simulation.seed, _SPEED, device)).standard_normal() / 4
        return float(factor ** min(1.0, max(0.0, place)))

    def _stream_of(self, simulation: Simulation) -> Stream | None:
        fleet = simulation.fleet
        if not fleet.is_asynchronous:
            return None

        def asked(number: int) -> dict[int, float]:
            devices = self.cohort(number)[1]
            return dict(zip(devices, map(float, self._needs(number, devices)), strict=True))

        return Stream(
            asked,
            buffer_size=fleet.buffer_size,
            deadline=float(fleet.deadline_seconds),
            least=fleet.min_updates,
            max_age=fleet.max_age,
        )

    @cached_property
    def _stragglers(self) -> Stragglers:
        return Stragglers.parse(self._simulation.stragglers or "0:1x")

    @cached_property
    def _slow(self) -> frozenset[int]:
        return self._some(self._stragglers.share, _SLOW)

    def _some(self, share: float, stream: int) -> frozenset[int]:
        rng = np.random.default_rng((self._simulation.seed, stream))
        devices = self._simulation.devices
        return frozenset(int(device) for device in rng.permutation(devices)[: round(share * devices)])


_THING = "device-%07d"


def thing_name(device: int) -> str:
    """Return a virtual device's thing name."""
    return _THING % device


def device_of(thing: str) -> int:
    """Return which virtual device has a thing name."""
    return int(thing.removeprefix("device-"))


def _plan_of(found: StreamRound) -> Plan:
    """Return a round of a stream as a plan; ``asked`` are those that began with its base."""
    return Plan(
        asked=tuple(found.began),
        answers=tuple(found.answers),
        late={device: found.began[device] for device in found.late},
        dropped=sum(not math.isfinite(seconds) for seconds in found.began.values()),
        seconds=found.seconds,
    )


def _chosen(asked: list[int], which: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(device for device, chosen in zip(asked, which, strict=True) if chosen)


def _draws(salt: str, devices: int) -> NDArray[np.float64]:
    """Return the lots of the first devices [devices], each as `fedgrass.protocol.cohort.draw` has it."""
    text = (salt.replace("%", "%%") + _THING).encode()
    parts = []
    # Some at a time: a million digests as objects would be 100 MB.
    for start in range(0, devices, _TOGETHER):
        some = range(start, min(start + _TOGETHER, devices))
        digests = b"".join([_sha256(text % device).digest() for device in some])
        parts.append(np.frombuffer(digests, ">u8")[::4] / 2.0**64)  # the first eight of each digest's 32 bytes
    found: NDArray[np.float64] = np.concatenate(parts)
    return found
