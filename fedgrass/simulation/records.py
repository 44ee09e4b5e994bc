"""What a simulation has to tell of each round, and of itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fedgrass.protocol.report import ADOPTED, Evaluation, RoundReport
from fedgrass.simulation.settings import Simulation


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class SimulatedRound(_Part):
    """One round: the aggregator's report, and what the simulated clock adds to it.

    ``before`` is the model that the round began with. ``late`` devices answered after the round's end, ``dropped`` ones
    never, ``failed`` ones could not train (by thing, why). ``seconds`` are simulated.
    """

    asked: int
    dropped: int
    late: int
    failed: dict[str, str]
    seconds: float
    before: Evaluation
    report: RoundReport

    @property
    def evaluation(self) -> Evaluation:
        """The model that the next round begins with: one that was held changes nothing."""
        return (self.report.evaluation if self.went_on else None) or self.before

    @property
    def went_on(self) -> bool:
        """Whether the round's model is the next round's base."""
        return self.report.outcome in ADOPTED


class Timing(_Part):
    """What the machine took; everything else in a report follows from the settings.

    ``ready_at`` is the Unix time at which the first round began. ``processor_seconds`` are those of all processes in the rounds
    together; 0 where the system does not tell.
    """

    workers: int
    ready_at: float
    start_seconds: float
    rounds: int
    seconds: float
    processor_seconds: float = 0.0
    device_rounds: int
    device_rounds_per_second: float
    peak_rss_mb: float


class SimulationReport(_Part):
    """``report.json``. ``timing`` is of the last run, which may have resumed an earlier one.

    ``ended`` says why the run was over before its rounds were.
    """

    simulation: Simulation
    model: str
    parameters: int
    first: Evaluation
    rounds: int
    outcomes: dict[str, int]
    final_version: str
    final_parameters_sha256: str
    final: Evaluation
    best: Evaluation
    bytes_read: int
    simulated_seconds: float
    ended: str = ""
    timing: Timing


class Comparison(_Part):
    """``report.json`` of a comparison: runs by name."""

    runs: dict[str, SimulationReport]
