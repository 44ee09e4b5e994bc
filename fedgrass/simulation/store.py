"""A simulation's folder: what it is, its rounds so far, and all that the next one depends on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from fedgrass import tensors
from fedgrass.bundle import Parameters
from fedgrass.errors import ConfigurationError, DataError, TensorFileError
from fedgrass.files import write_atomically
from fedgrass.locks import sole_user
from fedgrass.simulation.records import SimulatedRound, SimulationReport
from fedgrass.simulation.settings import Simulation
from fedgrass.strategies.arithmetic.interfaces import State

SETTINGS = "simulation.json"
ROUNDS = "rounds.jsonl"
STATE = "state.safetensors"
REPORT = "report.json"
KEPT = "kept"
GROUPS = "groups"
_LOCK = ".lock"


@dataclass(frozen=True)
class SimulationState:
    """Where a simulation stands after so many rounds."""

    rounds: tuple[SimulatedRound, ...]
    version: str
    parameters: Parameters
    server: State


class Store:
    """The folder. What `save` leaves can be resumed, whatever happens meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The file only grows: a run of a million rounds must not write all of them at each save.
        self._written = 0  # rounds that are in the file

    @property
    def kept(self) -> Path:
        """Folder of what outlives a round: what lossy codecs leave out, and updates that come late."""
        return self.folder / KEPT

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder against other processes: two that append rounds to one file would make it nobody's."""
        return sole_user(self.folder / _LOCK, "this simulation")

    def begin(self, simulation: Simulation) -> None:
        """Make the folder a new simulation's; one that came to no round, as with data that were missing, is in nobody's way.

        Raises
        ------
        ConfigurationError
            If it holds a simulation already.
        """
        if self.has_rounds:
            raise ConfigurationError(
                f"{self.folder}: holds a simulation; go on with --resume, or choose another --output"
            )
        # What devices kept of a round that was not whole would be of another simulation.
        shutil.rmtree(self.kept, ignore_errors=True)
        self.kept.mkdir(parents=True)
        write_atomically(self.folder / ROUNDS, b"")
        write_atomically(self.folder / SETTINGS, _json(simulation))

    @property
    def exists(self) -> bool:
        """Whether the folder holds a simulation."""
        return (self.folder / SETTINGS).exists()

    @property
    def has_rounds(self) -> bool:
        """Whether any round of it was saved; of groups, whether one of any group's was."""
        return any(path.exists() and path.stat().st_size > 0 for path in self._files_of_rounds())

    def _files_of_rounds(self) -> Sequence[Path]:
        return [self.folder / ROUNDS, *self.folder.glob(f"{GROUPS}/*/{ROUNDS}")]

    def require_same(self, simulation: Simulation, rounds: int = 0) -> None:
        """Raise `ConfigurationError` if the folder holds no simulation, another one, or more rounds than this one has.

        Parameters
        ----------
        simulation
            What is asked for.
        rounds
            How many the folder holds.
        """
        if (other := self.simulation().difference(simulation)) != "":
            raise ConfigurationError(
                f"{self.folder}: was simulated with another {other}; go on with the same options, or choose another --output"
            )
        if rounds > simulation.rounds:
            raise ConfigurationError(
                f"{self.folder}: holds {rounds} rounds, and {simulation.rounds} are asked for; ask for as many, or choose "
                "another --output"
            )

    def reopen(self, simulation: Simulation) -> None:
        """Make sure that the folder holds this simulation; with more rounds it holds that from now on.

        Raises
        ------
        ConfigurationError
            If the folder holds none, or another one.
        """
        self.require_same(simulation)
        write_atomically(self.folder / SETTINGS, _json(simulation))

    def resume(self, simulation: Simulation) -> SimulationState | None:
        """Return where the simulation stands; None if no round was saved.

        Raises
        ------
        ConfigurationError
            If the folder holds none, another one, or more rounds.
        DataError
            If what it holds is damaged.
        """
        self.require_same(simulation)
        if not (self.folder / STATE).exists():
            self.reopen(simulation)
            return None
        try:
            stored, metadata = tensors.load(self.folder / STATE)
            count, version = int(metadata["rounds"]), metadata["version"]
        except (TensorFileError, KeyError, ValueError) as error:
            raise DataError(f"{self.folder / STATE}: is damaged ({error}); simulate again") from error
        rounds = self.rounds()
        if len(rounds) < count:
            raise DataError(f"{self.folder / ROUNDS}: {len(rounds)} rounds, {count} were saved; simulate again")
        self.require_same(simulation, count)
        write_atomically(self.folder / SETTINGS, _json(simulation))
        # Rounds beyond the saved state are cut off: they would be simulated again, and stand there twice.
        write_atomically(self.folder / ROUNDS, b"".join(map(_line, rounds[:count])))
        self._written = count
        parameters = {name[2:]: value for name, value in stored.items() if name.startswith("p/")}
        server = {name[2:]: value for name, value in stored.items() if name.startswith("s/")}
        return SimulationState(tuple(rounds[:count]), version, parameters, server)

    def save(self, standing: SimulationState) -> None:
        """Append the rounds that are new, then write what the next one depends on."""
        # Rounds first, then the state that counts them: a kill in between leaves too many rounds, which `resume` cuts
        # off.
        with (self.folder / ROUNDS).open("ab") as file:
            file.write(b"".join(map(_line, standing.rounds[self._written :])))
        self._written = len(standing.rounds)
        stored = {f"p/{name}": value for name, value in standing.parameters.items()}
        stored |= {f"s/{name}": value for name, value in standing.server.items()}
        metadata = {"rounds": str(len(standing.rounds)), "version": standing.version}
        tensors.save(self.folder / STATE, stored, metadata)

    def simulation(self) -> Simulation:
        """Read the settings; raises `ConfigurationError` if there are none."""
        try:
            return Simulation.checked(json.loads((self.folder / SETTINGS).read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self.folder}: holds no simulation ({error})") from error

    def rounds(self) -> Sequence[SimulatedRound]:
        """Read the rounds; raises `DataError` if they are damaged. A last line that was cut off is left out."""
        try:
            lines = (self.folder / ROUNDS).read_bytes().split(b"\n")
            return [SimulatedRound.model_validate_json(line) for line in lines[:-1]]
        except (OSError, ValidationError) as error:
            raise DataError(f"{self.folder / ROUNDS}: cannot be read ({error})") from error


def open_report(folder: Path) -> tuple[SimulationReport, Sequence[SimulatedRound]]:
    """Read a simulation's report and rounds; raises `DataError` if there are none yet."""
    try:
        report = SimulationReport.model_validate_json((folder / REPORT).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{folder / REPORT}: is not a simulation's report ({error})") from error
    return report, Store(folder).rounds()


def _line(simulated: SimulatedRound) -> bytes:
    return simulated.model_dump_json(by_alias=True).encode() + b"\n"


def _json(simulation: Simulation) -> bytes:
    return (simulation.model_dump_json(indent=2) + "\n").encode()
