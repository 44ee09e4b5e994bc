"""A model judged in a separate process, which its native code, or the memory that it takes, may end.

The process (`be_judge`, or ``python -m fedgrass.edge.judging PARENT``) reads a `Case` from its standard input and answers with a
`Judgement`, each a line.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from fedgrass import logs
from fedgrass.bundle import Bundle
from fedgrass.edge.child import EXIT_MEMORY, MAX_LINE_BYTES, Child, Running, become_child
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.errors import FedgrassError
from fedgrass.logs import Log
from fedgrass.own_code import as_itself
from fedgrass.protocol.message import MOST_METRICS, Metrics, as_reason

if TYPE_CHECKING:
    from fedgrass.bundle import Manifest
    from fedgrass.data import Split
    from fedgrass.engines.base import Engine


class Case(BaseModel):
    """What is to be judged, and by which settings; bundles by their folders.

    ``builders``: where code that comes with models is unpacked to. ``own``: what this device has for itself, by kind.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    candidate: Path
    active: Path | None
    own: dict[str, Path] = {}
    builders: Path
    runtime: RuntimeSettings
    deployer: ModelDeployerSettings


class Judgement(BaseModel):
    """Whether a model is let in, why, and what was measured; ``chosen`` is which the application is to load, and ``why_chosen``.

    ``thresholds`` are anomaly detectors' on this device's examples, of the fleet's model and of the chosen one.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    admitted: bool
    chosen: str = "fleet"
    why_chosen: str = ""
    thresholds: Metrics = {}
    reason: str = ""
    metrics: Metrics = {}


def judge_apart(
    case: Case, *, start: Callable[[], Running] = lambda: Child("fedgrass.edge.judging", str(os.getpid()))
) -> Judgement:
    """Judge a model in a child; one that dies of it has refused the model.

    Parameters
    ----------
    case
        What to judge.
    start
        Starts the child, or returns one that waits already.
    """
    child, said = start(), b""
    try:
        child.tell(case.model_dump_json(by_alias=True).encode() + b"\n")
        # No time limit here: the install step has the nucleus's own.
        while (some := child.read(1.0)) != b"" and len(said) <= MAX_LINE_BYTES:
            said += some or b""
    finally:
        if len(said) > MAX_LINE_BYTES:
            child.kill()
        cause = child.died_of()
    # An answer counts even if the child died after it: unloading native code crashes too, and tells nothing about the
    # model.
    with contextlib.suppress(ValidationError):
        return Judgement.model_validate_json(said)
    return Judgement(admitted=False, reason=f"its admission died {cause or 'without a verdict'}")


def judge_here(case: Case, log: Log) -> Judgement:
    """Judge a model in this process; raises `MemoryError` if there is too little of it."""
    from fedgrass.data import load
    from fedgrass.edge.admission import WorseError, judge
    from fedgrass.edge.choice import choose
    from fedgrass.edge.device_models import FLEET
    from fedgrass.engines.flower_node import Node, join
    from fedgrass.engines.registry import open_engine
    from fedgrass.engines.shipped import have_packages, own_builder

    runtime, deployer, thing = case.runtime, case.deployer, os.environ.get("AWS_IOT_THING_NAME", "")

    def load_examples(manifest: Manifest) -> Split:
        return load(runtime.data, manifest)

    def opened(bundle: Bundle) -> Engine:
        builder = own_builder(bundle, runtime.builders, runtime.builder, case.builders)
        engine = open_engine(runtime.engine, bundle, threads=runtime.threads, builder=builder)
        # No folder: what an app leaves in its state is of rounds alone.
        return join(engine, Node(thing, {**runtime.node_config, "thing": thing}))

    try:
        have_packages(runtime.packages)
        candidate = Bundle.open(case.candidate)
        active = Bundle.open(case.active) if case.active is not None else None
        # Each app's data are its own, so figures of two apps are of different things.
        if active is not None and runtime.data.loader == "own" and active.manifest.name != candidate.manifest.name:
            active = None
        verdict = judge(
            candidate,
            active,
            tolerance=deployer.tolerance,
            metric=deployer.metric,
            max_latency_ms=deployer.max_latency_ms,
            max_memory_mb=deployer.max_memory_mb,
            load=load_examples,
            open_engine=opened,
        )
        own = {kind: Bundle.open(folder) for kind, folder in case.own.items()}
        choice = choose(verdict.metrics, own, load=load_examples, open_engine=opened, metric=deployer.metric)
    except FedgrassError as error:
        metrics = error.metrics if isinstance(error, WorseError) else {}
        return Judgement(admitted=False, reason=as_reason(str(error)), metrics=_finite(metrics))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a loader or an engine of the user's own may raise anything
        log.log_event("model_evaluation_crashed")
        return Judgement(admitted=False, reason=as_reason(as_itself(error)))
    reason = "; ".join(filter(None, (verdict.reason, choice.reason)))
    metrics = _finite({**(choice.metrics or {}), **verdict.metrics})
    # In this order: the fleet's own may be the chosen one.
    found = {choice.kind: choice.error_threshold, FLEET: verdict.metrics.get("error_threshold")}
    thresholds = _finite({kind: value for kind, value in found.items() if value is not None})
    return Judgement(
        admitted=True,
        chosen=choice.kind,
        why_chosen=choice.reason,
        thresholds=thresholds,
        reason=as_reason(reason),
        metrics=metrics,
    )


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    # JSON has no NaN, and messages refuse one, and more than so many.
    return dict([(name, value) for name, value in metrics.items() if math.isfinite(value)][:MOST_METRICS])


def be_judge(parent: int) -> int:
    """Be the child of the process whose number is given, and judge one case for it; returns the exit code."""
    orders, answers = become_child(parent)
    logs.configure()
    log = Log("fedgrass.edge.admit", thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    with os.fdopen(orders, "rb") as lines:
        line = lines.readline()
    # Nothing to judge: the model is active already, or was refused before.
    if not line:
        return 0
    try:
        judgement = judge_here(Case.model_validate_json(line), log)
    except MemoryError:
        return EXIT_MEMORY
    os.write(answers, judgement.model_dump_json().encode() + b"\n")
    return 0


if __name__ == "__main__":
    code = be_judge(int(sys.argv[1]))
    sys.stdout.flush()
    # Not sys.exit: unloading LiteRT takes longer than much of the rest.
    os._exit(code)
