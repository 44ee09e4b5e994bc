"""What the fleet's result is measured against: each device alone, and all data in one place.

``python -m fedgrass.local.demo.baselines`` is the process that trains them, beside the rounds: its argument is a
`Task`, and it writes `Baselines`, both as JSON.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass.errors import FedgrassError
from fedgrass.local.processes import spawn, stop

_LEAST_PRIORITY = 19


class Task(BaseModel):
    """What to train, and on which files of examples, as `fedgrass.local.demo.data.save` writes them."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    bundle: Path
    devices: dict[str, Path]
    kept: Path
    epochs: int
    learning_rate: float
    seed: int


class Baselines(BaseModel):
    """Accuracies on the kept examples after as many epochs as the fleet trained."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    alone: dict[str, float]
    centralised: float

    @property
    def best_alone(self) -> float:
        """The best single device."""
        return max(self.alone.values())


class Measuring:
    """Trains the same model with the same engine on each device's data alone, and on all of them together.

    In a process of its own, at the least priority: the rounds have the processors, and it has what they leave. Leaving the
    ``with`` block ends it.

    Parameters
    ----------
    task
        What to train.
    log
        File for what the process says, LiteRT's greeting included.
    """

    def __init__(self, task: Task, log: Path) -> None:
        self._log = log
        argv = [sys.executable, "-m", "fedgrass.local.demo.baselines", task.model_dump_json()]
        with log.open("wb") as stderr:
            self._process = spawn(argv, stdout=subprocess.PIPE, stderr=stderr)

    def result(self) -> Baselines:
        """Return what was found, when it is.

        Raises
        ------
        FedgrassError
            If the process failed; its last words are in the message.
        """
        found, _ = self._process.communicate()
        try:
            return Baselines.model_validate_json(found)
        except ValidationError as error:
            words = self._log.read_text(errors="replace")[-1500:]
            code = self._process.returncode
            raise FedgrassError(f"the trainings to compare with ended with code {code}: {words}") from error

    def __enter__(self) -> Measuring:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stop(self._process)


def measure(task: Task) -> Baselines:
    """Train here, one after the other."""
    # Late: whoever only starts the process needs neither.
    from fedgrass.bundle import Bundle
    from fedgrass.data import ArrayDataset
    from fedgrass.engines.base import FitSettings
    from fedgrass.engines.litert import LiteRTEngine
    from fedgrass.local.demo import data

    settings = FitSettings(epochs=task.epochs, learning_rate=task.learning_rate, seed=task.seed)
    bundle = Bundle.open(task.bundle)
    examples = data.DemoData({thing: data.load(path) for thing, path in task.devices.items()}, data.load(task.kept))

    def accuracy(part: ArrayDataset) -> float:
        engine = LiteRTEngine(bundle)
        engine.set_parameters(engine.fit(part, settings).parameters)
        return engine.evaluate(examples.kept)["accuracy"]

    alone = {thing: accuracy(part) for thing, part in examples.devices.items()}
    return Baselines(alone=alone, centralised=accuracy(examples.pooled))


def main() -> None:
    """Do the task that is given."""
    os.nice(_LEAST_PRIORITY)
    sys.stdout.write(measure(Task.model_validate_json(sys.argv[1])).model_dump_json())


if __name__ == "__main__":
    main()
