"""What the fleet's result is measured against: each device alone, and all data in one place."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.local.demo.data import DemoData


@dataclass(frozen=True)
class Baselines:
    """Accuracies on the kept examples after as many epochs as the fleet trained."""

    alone: dict[str, float]
    centralised: float

    @property
    def best_alone(self) -> float:
        """The best single device."""
        return max(self.alone.values())


def measure(bundle: Bundle, data: DemoData, settings: FitSettings) -> Baselines:
    """Train the same model with the same engine on each device's data alone, and on all of them together.

    Parameters
    ----------
    bundle
        The model to start from.
    data
        Each device's examples, those of all, and those that judge.
    settings
        How each training goes.

    Returns
    -------
    Baselines
        Accuracy of each device alone, and of the pooled data.
    """
    examples = [*data.devices.values(), data.pooled]
    # Processes of their own: all cores are used, and LiteRT's greeting on stderr does not reach the terminal.
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(len(examples), os.cpu_count() or 1), _silence) as pool:  # leaving it ends what still runs
        *alone, centralised = pool.map(
            partial(_accuracy, folder=bundle.folder, kept=data.kept, settings=settings), examples, chunksize=1
        )
    return Baselines(dict(zip(data.devices, alone, strict=True)), centralised)


def _silence() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _accuracy(examples: ArrayDataset, *, folder: Path, kept: ArrayDataset, settings: FitSettings) -> float:
    engine = LiteRTEngine(Bundle.open(folder))
    engine.set_parameters(engine.fit(examples, settings).parameters)
    return engine.evaluate(kept)["accuracy"]
