"""What trains and judges in a simulation: processes, the examples, and an engine of the leading process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedgrass.bundle import Bundle
from fedgrass.data.evaluation_set import EvaluationSet
from fedgrass.engines.base import Engine
from fedgrass.engines.checks import Checked
from fedgrass.engines.registry import open_engine
from fedgrass.simulation.cluster import Cluster
from fedgrass.simulation.examples import Examples, prepare
from fedgrass.simulation.population import Population
from fedgrass.simulation.settings import Simulation
from fedgrass.simulation.worker import Setup
from fedgrass.simulation.worker_pool import WorkerPool


@dataclass(frozen=True)
class Machine:
    """One simulation's. The rounds of several models may share it, one after the other (`fedgrass.simulation.groups`).

    ``judging`` are the examples that no device has.
    """

    population: Population
    examples: Examples
    pool: WorkerPool
    judging: Checked
    engine: Engine

    @classmethod
    def of(
        cls, simulation: Simulation, bundle: Bundle, scratch: Path, workers: int | None, cluster: Cluster | None = None
    ) -> Machine:
        """Read the data and start the processes, which are waited for when the pool is entered.

        Parameters
        ----------
        simulation
            What is simulated.
        bundle
            The model to start from.
        scratch
            Folder for what the processes map.
        workers
            How many processes; None: one for each processor.
        cluster
            Whose machines they are on; None: on this one.
        """
        population = Population(simulation)
        # Before the pool: workers map what this writes.
        examples = prepare(simulation, bundle.manifest, scratch)
        pool = WorkerPool(Setup(simulation, bundle.folder.resolve(), scratch), workers, cluster)
        kept = next(examples.kept.batches(len(examples.kept)))
        judging = Checked(EvaluationSet(kept.x, kept.y, kept.anomaly))
        engine = open_engine(simulation.engine, bundle, builder=simulation.builder)
        return cls(population, examples, pool, judging, engine)
