"""Whether a new model is good enough to be released."""

from __future__ import annotations

from dataclasses import dataclass

from fedgrass.protocol.report import Evaluation, Outcome
from fedgrass.protocol.settings import FleetSettings


@dataclass(frozen=True)
class Verdict:
    """The gate's word, with its reason either way."""

    passed: bool
    reason: str


def judge(base: Evaluation | None, new: Evaluation | None, *, tolerance: float) -> Verdict:
    """Compare the new model with its base on the same examples.

    A classifier's accuracy may fall by at most ``tolerance``. Another model's loss may rise by at most that fraction of
    itself. Without an evaluation set every model passes: each device's own admission is then the only check.
    """
    if base is None or new is None:
        return Verdict(True, "no evaluation set for this model: the gate did not look")
    if new.accuracy is None or base.accuracy is None:
        passed = new.loss <= base.loss + tolerance * abs(base.loss)
        figures = f"loss {new.loss:.4f} after {base.loss:.4f}"
    else:
        passed = new.accuracy >= base.accuracy - tolerance - 1e-12  # 0.9 - 0.02 is not quite 0.88 in binary
        figures = f"accuracy {new.accuracy:.4f} after {base.accuracy:.4f}"
    return Verdict(passed, f"{figures}, tolerance {tolerance:g}" + ("" if passed else ": the base stays"))


def decided(
    settings: FleetSettings, number: int, verdict: Verdict, base: Evaluation | None, new: Evaluation | None
) -> tuple[Outcome, str]:
    """Return what becomes of the model of round ``number``, by the gate's verdict on it and the fleet's settings, and why."""
    if not verdict.passed:
        return "held", verdict.reason
    if settings.release == "never":
        return "held", f"the fleet's settings release no model; {verdict.reason}"
    every = settings.release_every
    if number % every:
        return "advanced", f"{verdict.reason}; the next release is round {number + every - number % every}'s"
    if settings.release == "on_improvement" and not (better := improved(base, new)).passed:
        return "held", better.reason
    return "released", verdict.reason


def improved(base: Evaluation | None, new: Evaluation | None) -> Verdict:
    """Say whether the new model is better than its base: more accurate, or else of smaller loss. Without figures it is not."""
    if base is None or new is None:
        return Verdict(False, "no evaluation set: whether the model is better is not known, and the base stays")
    if new.accuracy is None or base.accuracy is None:
        return Verdict(new.loss < base.loss, f"loss {new.loss:.4f} after {base.loss:.4f}: released on improvement only")
    passed = new.accuracy > base.accuracy
    return Verdict(passed, f"accuracy {new.accuracy:.4f} after {base.accuracy:.4f}: released on improvement only")
