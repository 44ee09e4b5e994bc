"""What a fleet has spent of its privacy, and whether another round may spend more. Needs no accountant: the aggregator has one.

Every round that opens counts, whatever becomes of it: what was asked of the devices cannot be unasked. One without noise counts
too: whatever learnt in it has no finite ε, and noise before and after does not give it one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, computed_field

from fedgrass.protocol.message import Finite
from fedgrass.protocol.privacy_settings import Privacy

MOST_SPENDS = 1000
"""Kinds of rounds that a ledger tells apart: it has to fit into a DynamoDB item of 400 kB."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class Spend(_Part):
    """Rounds with the same noise. ``fraction`` is the share of devices in each of them, where that may be counted; else 1.

    ``sensitivity`` is how far what the noise was added to may change between two fleets that must not be told apart, in units of
    the clipping norm: 1 where one device's update is zero in one of them, 2 where it may be any two. ``depth`` is how many sums
    with such noise a device's update is in: 1, but where rounds share a tree of noise, which counts as one round.
    """

    noise_multiplier: float = Field(gt=0)
    depth: int = Field(default=1, ge=1, le=64)
    sensitivity: float = Field(default=1.0, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    rounds: int = Field(default=1, ge=1)

    @property
    def kind(self) -> tuple[float, float, float, int]:
        """What rounds of this kind have alike."""
        return self.noise_multiplier, self.sensitivity, self.fraction, self.depth

    @property
    def relative_noise(self) -> float:
        """Standard deviation of the noise in units of the sensitivity: what an accountant asks for."""
        # Several sums with a device's update in each are one vector, that it moves by the root of their number.
        return self.noise_multiplier / (self.sensitivity * math.sqrt(self.depth))


class Tree(_Part):
    """The tree of noise that the rounds up to ``last`` share: ``steps`` of ``rounds``, each device in one of them at most."""

    rounds: int = Field(ge=2)
    steps: int = Field(ge=1)
    last: int = Field(ge=1)
    noise_multiplier: float = Field(gt=0)
    clip_norm: float = Field(gt=0)

    @property
    def depth(self) -> int:
        """Nodes that a device's update may be in: of trees of so many leaves, the levels that have a whole node."""
        return self.steps.bit_length()

    def goes_on(self, privacy: Privacy, rounds: int) -> bool:
        """Say whether a round with these settings may share it: one grid of noise, and a piece of the fleet that is left."""
        alike = (self.rounds, self.noise_multiplier, self.clip_norm)
        return alike == (rounds, privacy.noise_multiplier, privacy.clip_norm) and self.steps < self.rounds


class PrivacyLedger(_Part):
    """All rounds so far, and the (ε, δ) that the accountant made of those with noise.

    ``epsilon`` is for the first ``judged`` rounds with noise, and ``next_epsilon`` for one more like the last of them: what came
    later has not been judged yet. ``epsilon_renyi`` is what Rényi accounting makes of the same rounds. There is none of these if
    a round without noise is among them (``bare`` such rounds, the last of them ``last_bare``) from round ``since`` on.
    """

    spends: tuple[Spend, ...] = Field(default=(), max_length=MOST_SPENDS)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    judged: int = Field(default=0, ge=0)
    epsilon: Finite | None = None
    epsilon_renyi: Finite | None = None
    next_epsilon: Finite | None = None
    clip_norm: Finite | None = Field(default=None, description="What adaptive clipping has come to; the next round's")
    bare: int = Field(default=0, ge=0)
    last_bare: int = Field(default=0, ge=0)
    since: int = Field(default=0, ge=0)
    tree: Tree | None = None

    @property
    def unbounded(self) -> bool:
        """Whether a round without noise is in the account, so that no ε is finite."""
        # Rounds are numbered from 1, so a ledger without any bare round (0) is bounded.
        return self.last_bare >= max(1, self.since)

    @property
    def neighbours(self) -> str:
        """Say between which two fleets nobody can tell by more than ε, in words."""
        # The weaker statement, if both kinds of rounds are in the account.
        if any(spend.sensitivity < 2 for spend in self.spends):
            return "with or without one device's updates"
        return "whatever one device's updates are"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def said(self) -> str:
        """What is spent, in words; empty if there was never any noise."""
        if not self.spends:
            return ""
        if self.unbounded:
            return (
                f"no finite ε: {self.bare} rounds were without noise, the last of them round {self.last_bare}; noise in "
                f"{self.rounds} others does not undo them"
            )
        if self.epsilon is None:
            return ""
        since = f", from round {self.since} on: what came before is in no account" if self.since else ""
        return f"ε {self.epsilon:.4g} at δ {self.delta:g}, {self.neighbours}{since}"

    @property
    def rounds(self) -> int:
        """Rounds with noise; those of one tree are one."""
        return sum(spend.rounds for spend in self.spends)

    @property
    def following(self) -> tuple[Spend, ...]:
        """What is spent with one more round like the last."""
        last = self.spends[-1].model_copy(update={"rounds": 1})
        tree = self.tree
        # The last spend is the tree's own as long as its rounds are the last: of a full one the next begins.
        if tree is None or last.depth != tree.depth or last.noise_multiplier != tree.noise_multiplier:
            return (*self.spends, last)
        if tree.steps == tree.rounds:
            return (*self.spends, last.model_copy(update={"depth": 1}))
        deeper = last.model_copy(update={"depth": (tree.steps + 1).bit_length()})
        return (*_with_one_less(self.spends, last), deeper)

    def charged(self, privacy: Privacy, fraction: float, tree: Tree | None = None) -> PrivacyLedger:
        """Return the ledger with one more round under these settings.

        Parameters
        ----------
        privacy
            The round's settings.
        fraction
            Share of the fleet that is part of it.
        tree
            The tree of noise that it is the last step of so far, if it has part in one.
        """
        new, spends = _spend(privacy, fraction), list(self.spends)
        if tree is not None:
            # A tree's rounds are one spend, which deepens with them.
            spends = _with_one_less(spends, new.model_copy(update={"depth": (tree.steps - 1).bit_length()}))
            new = new.model_copy(update={"depth": tree.depth})
        # Rounds alike are counted together, whenever they were: their order changes no ε.
        alike = [spend for spend in spends if spend.kind == new.kind]
        spends = [spend for spend in spends if spend.kind != new.kind]
        new = new.model_copy(update={"rounds": 1 + sum(spend.rounds for spend in alike)})
        spends = _at_most(spends, MOST_SPENDS - 1)
        changes = {"spends": (*spends, new), "delta": privacy.delta, "since": privacy.account_from, "tree": tree}
        return self.model_copy(update=changes)

    def with_bare(self, number: int) -> PrivacyLedger:
        """Return the ledger with a round without noise, of this number."""
        # What was accounted for before no longer holds, so nobody may read it.
        nothing = {"epsilon": None, "epsilon_renyi": None, "next_epsilon": None, "judged": 0}
        return self.model_copy(update={"bare": self.bare + 1, "last_bare": number, **nothing})

    def projected(self, privacy: Privacy, fraction: float, tree: Tree | None = None) -> float | None:
        """Return an upper bound of ε after one more round, as of `charged`; None if only the accountant can tell.

        The accountant's own, where it judged exactly this case. Otherwise `gaussian_epsilon`, which knows nothing of sampling.
        """
        new = _spend(privacy, fraction)
        after = self.charged(privacy, fraction, tree)
        if (
            tree is None
            and self.next_epsilon is not None
            and self.judged == self.rounds
            and self.delta == privacy.delta
            and self.spends[-1].kind == new.kind
        ):
            return self.next_epsilon
        # Amplification by sampling needs the accountant; without it the bound would refuse rounds that fit the
        # budget.
        if new.fraction < 1:
            return None
        return gaussian_epsilon(
            sum(spend.rounds / (2 * spend.relative_noise**2) for spend in after.spends), privacy.delta
        )


def gaussian_epsilon(rho: float, delta: float) -> float:
    """Return ε at δ of Gaussian noise that is ρ-zCDP: ρ = 1/(2z²) for noise z times the sensitivity, added up over rounds.

    It is the Gaussian's own curve (Balle and Wang, ICML 2018, https://arxiv.org/abs/1805.06530, theorem 8); above 700 the
    bound of zero-concentrated privacy, ρ + 2√(ρ ln 1/δ) (Bun and Steinke, TCC 2016, https://arxiv.org/abs/1605.02065).
    """
    shift, low, high = math.sqrt(2 * rho), 0.0, rho + 2 * math.sqrt(rho * math.log(1 / delta))
    if not 0 < high < _MOST_EXPONENT:
        return high
    # Bisection: 60 halvings are below the last bit of a double.
    for _ in range(60):
        middle = (low + high) / 2
        near, far = (side * shift / 2 + middle / shift for side in (-1, 1))
        # δ(ε) of the Gaussian mechanism falls with ε.
        if _tail(near) - math.exp(middle) * _tail(far) > delta:
            low = middle
        else:
            high = middle
    # Rounded up: what is said may be too much, never too little.
    return high * (1 + 1e-9)


# exp overflows a double at 709.
_MOST_EXPONENT = 700.0


def _tail(at: float) -> float:
    """Return the probability that a standard normal number is larger."""
    return math.erfc(at / math.sqrt(2)) / 2


def _with_one_less(spends: Iterable[Spend], one: Spend) -> list[Spend]:
    """Return the spends without one round of this kind; with all of them, if there is none (`_at_most` may have merged it)."""
    found = []
    for spend in spends:
        if spend.kind != one.kind:
            found.append(spend)
        elif spend.rounds > 1:
            found.append(spend.model_copy(update={"rounds": spend.rounds - 1}))
    return found


def _at_most(spends: list[Spend], most: int) -> list[Spend]:
    """Count rounds that are nearly alike as the dearest of them, until there are few enough kinds: ε never shrinks by it."""
    if len(spends) <= most:
        return spends
    # Neighbours in this order differ least where they differ in the share of devices alone, as in a fleet that grows.
    found = sorted(spends, key=lambda spend: (spend.relative_noise, spend.sensitivity, spend.fraction))
    while len(found) > most:
        at = min(range(len(found) - 1), key=lambda place: _dearer(found[place], found[place + 1]))
        pair = found[at : at + 2]
        # The lesser sensitivity is the weaker statement (`PrivacyLedger.neighbours`), which must not be lost.
        sensitivity = min(spend.sensitivity for spend in pair)
        found[at : at + 2] = [
            Spend(
                noise_multiplier=min(spend.relative_noise for spend in pair) * sensitivity,
                sensitivity=sensitivity,
                fraction=max(spend.fraction for spend in pair),
                rounds=sum(spend.rounds for spend in pair),
            )
        ]
    return found


def _dearer(one: Spend, other: Spend) -> float:
    """Return about by how much two kinds' ρ grows if both count as the dearer: sampling enters as the square of its share."""
    parts = [spend.fraction**2 / spend.relative_noise**2 for spend in (one, other)]
    dearest = max(one.fraction, other.fraction) ** 2 / min(one.relative_noise, other.relative_noise) ** 2
    return sum(spend.rounds * (dearest - part) for spend, part in zip((one, other), parts, strict=True))


def _spend(privacy: Privacy, fraction: float) -> Spend:
    # In the other modes the noise is against the cloud itself, which knows who was asked.
    counts = privacy.mode == "central" and privacy.secret_cohort
    # An update that is seen by itself may be any two for the one who looks; a sum hides whether there was one.
    sensitivity = 2.0 if privacy.mode == "local" else 1.0
    return Spend(
        noise_multiplier=privacy.noise_multiplier, sensitivity=sensitivity, fraction=fraction if counts else 1.0
    )
