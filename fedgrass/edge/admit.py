"""A model's lifecycle script: ``python -m fedgrass.edge.admit --artifacts DIR --store DIR``.

Runs as ``install`` of com.fedgrass.GlobalModel. When that fails, the classic nucleus rolls the deployment back, and nucleus lite
reports it failed and takes nothing back; what keeps the old model active on both is that a refused one is not activated. It may
run again for a model that is active already, when there is nothing to do. Exit codes: 0 the model is active; 1 it was refused,
the active one stays; 78 the configuration is wrong.

accessControl: pubsub PublishToTopic ``fedgrass/model/admission``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass import logs
from fedgrass.bundle import Bundle, Manifest
from fedgrass.data import DataSettings, Split, load
from fedgrass.edge import settings
from fedgrass.edge.model_store import Admission, ModelStore
from fedgrass.edge.settings import EXIT_CONFIGURATION, ModelDeployerSettings, RuntimeSettings
from fedgrass.engines.base import Engine
from fedgrass.engines.registry import open_engine
from fedgrass.errors import ConfigurationError, FedgrassError, IpcError
from fedgrass.logs import Log
from fedgrass.protocol.messages import AdmissionNotice, as_reason
from fedgrass.protocol.names import GLOBAL_MODEL, MODEL_ADMISSION_TOPIC, MODEL_DEPLOYER, RUNTIME

if TYPE_CHECKING:
    from fedgrass.edge.ipc import Ipc

EXIT_REFUSED = 1

_PATIENCE_SECONDS = 10.0


def admit(
    artifacts: Path, store: ModelStore, runtime: RuntimeSettings, deployer: ModelDeployerSettings, log: Log
) -> Admission | None:
    """Judge the model in ``artifacts`` and make it active, or note why not; None if that was decided before.

    Raises
    ------
    FedgrassError
        If the folder holds no bundle, or the store cannot be written.
    """
    from fedgrass.edge.admission import WorseError, judge

    candidate = Bundle.open(artifacts)
    version = candidate.manifest.version

    def examples(manifest: Manifest) -> Split:
        return load(runtime.data, manifest)

    def engine(bundle: Bundle) -> Engine:
        return open_engine(runtime.engine, bundle, threads=runtime.threads, builder=runtime.builder)

    with store.lock():
        if store.holds(candidate):
            told = [a for a in store.admissions() if a.outcome == "active"]
            if told and told[-1].version == version:
                log.info("model is active already", version=version)
                return None
            return store.record(version, "active", reason="an earlier admission was cut short after it")
        if store.is_taken_back(version):
            log.warning("model was rolled back on this device and stays out", version=version)
            return None
        try:
            verdict = judge(
                candidate,
                store.active(),
                tolerance=deployer.tolerance,
                max_latency_ms=deployer.max_latency_ms,
                max_memory_mb=deployer.max_memory_mb,
                load=examples,
                open_engine=engine,
            )
            store.activate(candidate)
        except FedgrassError as error:
            metrics = error.metrics if isinstance(error, WorseError) else {}
            return store.record(version, "refused", reason=str(error), metrics=metrics)
        return store.record(version, "active", reason=verdict.reason, metrics=verdict.metrics)


def main() -> int:
    """Admit one model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedgrass.edge.admit", description=__doc__)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder that holds the new model's bundle")
    parser.add_argument("--store", type=Path, required=True, help="the model store")
    arguments = parser.parse_args()
    logs.configure()
    log = Log("fedgrass.edge.admit", thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    store = ModelStore(arguments.store)
    try:
        ipc, runtime, deployer = _surroundings(log)
        admission = admit(arguments.artifacts, store, runtime, deployer, log.bind(fleet=runtime.fleet))
    except FedgrassError as error:
        log.error(str(error), code=error.code)
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_REFUSED
    except OSError as error:
        log.error(f"{error.filename or arguments.store}: {error.strerror}", code="admission")
        return EXIT_REFUSED
    if admission is None:
        return 0
    say = log.info if admission.outcome == "active" else log.error
    say("model " + admission.outcome, version=admission.version, reason=admission.reason, metrics=admission.metrics)
    if ipc is not None:
        _publish(ipc, admission, log)
    return 0 if admission.outcome == "active" else EXIT_REFUSED


def _surroundings(log: Log) -> tuple[Ipc | None, RuntimeSettings, ModelDeployerSettings]:
    """Read the settings over IPC; by hand, outside a nucleus, a model is judged by its soundness alone.

    Under a nucleus that does not answer, the model is refused: without settings there are no data to judge it by.
    """
    if "SVCUID" not in os.environ:
        log.warning("no nucleus: the model is not compared on data")
        return None, RuntimeSettings(fleet="none", data=DataSettings()), ModelDeployerSettings()
    from fedgrass.edge.ipc import GreengrassIpc

    ipc = GreengrassIpc(log, component=GLOBAL_MODEL, lost=lambda: None, patience=_PATIENCE_SECONDS)
    return (
        ipc,
        settings.read(ipc, RUNTIME, RuntimeSettings),
        settings.read(ipc, MODEL_DEPLOYER, ModelDeployerSettings),
    )


def _publish(ipc: Ipc, admission: Admission, log: Log) -> None:
    """Tell ModelDeployer, which reads the store anyway: a notice that does not get through costs half a minute."""
    if admission.outcome == "rolled_back":
        return
    notice = AdmissionNotice(
        version=admission.version,
        outcome=admission.outcome,
        reason=as_reason(admission.reason),
        metrics=admission.metrics,
    )
    try:
        ipc.publish_local(MODEL_ADMISSION_TOPIC, notice.encode())
    except IpcError as error:
        log.warning("ModelDeployer was not told", error=str(error))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: unloading the IPC and LiteRT libraries takes longer than all the rest.
    os._exit(code)
