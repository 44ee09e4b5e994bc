"""A model's lifecycle script: ``python -m fedgrass.edge.admit --artifacts DIR --store DIR``.

Runs as ``install`` of com.fedgrass.GlobalModel. A refusal is a decision, not a failure: the active model stays, the deployment
succeeds on both nuclei, and the cloud is told. With ``--refusal fail`` it ends with 1 instead: then the classic nucleus rolls the
whole deployment back, and nucleus lite reports it failed and takes nothing back. It may run again for a model that is active or
was just refused, when there is nothing to do. Exit codes: 0 it was decided; 1 it could not be, or with ``fail`` the model was
refused; 78 the configuration is wrong.

accessControl: pubsub PublishToTopic ``fedgrass/model/admission``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass import logs
from fedgrass.bundle import Bundle
from fedgrass.data_settings import DataSettings
from fedgrass.edge import settings
from fedgrass.edge.admissions import Admission
from fedgrass.edge.child import ForkedChild
from fedgrass.edge.device_models import FLEET
from fedgrass.edge.judging import Case, Judgement, be_judge, judge_apart
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import EXIT_CONFIGURATION, ModelDeployerSettings, RuntimeSettings
from fedgrass.errors import BundleError, ConfigurationError, FedgrassError, IpcError
from fedgrass.files import sha256_of
from fedgrass.logs import Log
from fedgrass.protocol.device_messages import AdmissionNotice
from fedgrass.protocol.message import as_reason
from fedgrass.protocol.names import (
    GLOBAL_MODEL,
    MODEL_ADMISSION_TOPIC,
    MODEL_DEPLOYER,
    RUNTIME,
    is_version,
    version_order,
)

if TYPE_CHECKING:
    from fedgrass.edge.ipc import Ipc

EXIT_FAILED = 1

# Of connecting to the nucleus. An install step is short of time, and the nucleus repeats it if it fails.
_PATIENCE_SECONDS = 10.0
_VERDICT_SECONDS = 3600.0
"""How long a refusal stands without another look at the data: nuclei repeat an install that failed, and at each start."""


def admit(
    artifacts: Path,
    store: ModelStore,
    runtime: RuntimeSettings,
    deployer: ModelDeployerSettings,
    log: Log,
    *,
    judged: Callable[[Case], Judgement] = judge_apart,
) -> Admission | None:
    """Judge the model in a folder, and make it active or note why not.

    Parameters
    ----------
    artifacts
        The folder that the nucleus unpacked the component's artifacts into.
    store
        The device's models; locked meanwhile.
    runtime
        Where data and engine are.
    deployer
        The owner's bounds.
    log
        Takes what was found.
    judged
        Judges a case; in a separate process unless a test says otherwise.

    Returns
    -------
    Admission or None
        What was noted; None if there is nothing to do.

    Raises
    ------
    FedgrassError
        If the folder holds no bundle and does not say of which version, or the store cannot be written.
    """
    try:
        candidate = Bundle.open(artifacts)
    # It may be a bundle format that this release does not read: refused by its version, since a failed install would
    # block the deployment.
    except BundleError as error:
        return _refused_unread(artifacts, store, error)
    version = candidate.manifest.version

    with store.lock():
        # The classic nucleus runs install again at each of its starts: an active model must not be evaluated each
        # time.
        if store.holds(candidate):
            store.forget_verdict()
            # Only the note may be missing: a kill between activating and noting leaves the cloud without a word about
            # this model.
            told = [a for a in store.admissions() if a.outcome == "active"]
            if told and told[-1].version == version:
                log.log_event("model_active_already", version=version)
                return None
            return store.record(version, "active", reason="an earlier admission was cut short after it")
        # After a local roll-back the deployment still names this version, so its install comes back at every start.
        if store.is_taken_back(version):
            log.log_event("model_rolled_back_before", version=version)
            return None
        active = store.active()
        if active is not None and version_order(version) < version_order(active.manifest.version):
            store.device.forget_tuned()
        # What the device keeps for itself is part of the model that would be judged, so its digest is part of the
        # question.
        question = _question(candidate, active, runtime, deployer) + _digest(store.device.own)
        if (refusal := store.verdict(question, _VERDICT_SECONDS)) is not None:
            log.log_event("model_refused_before", version=version)
            return refusal
        try:
            # The lock is held while the child judges: two admissions at a time would compare with an active model
            # that is about to change. Compared with what the application runs now, own parameters included: the fleet's
            # model alone would be an easier mark.
            with (
                store.device.as_applied(candidate) as given,
                store.compared() as before,
                store.device.personal_models(candidate) as own,
            ):
                case = Case(
                    candidate=given.folder,
                    active=before.folder if before is not None else None,
                    own={kind: bundle.folder for kind, bundle in own.items()},
                    builders=store.folder / "builders",
                    runtime=runtime,
                    deployer=deployer,
                )
                judgement = judged(case)
            if not judgement.admitted:
                return store.refuse(version, judgement.reason, question, judgement.metrics)
            store.activate(candidate, judgement.chosen, scores=scores_of(candidate, judgement, deployer))
        # Whatever is wrong with this model, the device keeps the one it has.
        except FedgrassError as error:
            return store.refuse(version, str(error), question)
        store.forget_verdict()
        return store.record(version, "active", reason=judgement.reason, metrics=judgement.metrics)


def scores_of(candidate: Bundle, judgement: Judgement, deployer: ModelDeployerSettings) -> dict[str, bytes]:
    """Return ``score.json`` of an anomaly detector, by kind of model; nothing of another.

    Parameters
    ----------
    candidate
        The fleet's model.
    judgement
        Which model was chosen, and the thresholds that were measured.
    deployer
        The owner's settings.
    """
    quantile = candidate.manifest.anomaly_quantile
    if quantile is None:
        return {}
    from fedgrass.edge.score import Score

    # The fleet's is of the fleet's model: what a device made of it for itself has other scores.
    came = Score.read(candidate.folder)
    fleets = {FLEET: came.of_fleet if came is not None else None}
    owners = deployer.anomaly_threshold
    found = {
        kind: Score.of(quantile, judgement.thresholds.get(kind), owners, fleets.get(kind))
        for kind in (FLEET, judgement.chosen)
    }
    return {kind: score.to_json() for kind, score in found.items() if score is not None}


def _question(
    candidate: Bundle, active: Bundle | None, runtime: RuntimeSettings, deployer: ModelDeployerSettings
) -> str:
    """Return a digest of everything that a verdict depends on, except the data."""
    parts = [candidate.manifest, active.manifest if active else RuntimeSettings(fleet="none"), runtime, deployer]
    return hashlib.sha256("\n".join(part.model_dump_json() for part in parts).encode()).hexdigest()


def _digest(path: Path) -> str:
    return f" {sha256_of(path)}" if path.is_file() else ""


def _refused_unread(artifacts: Path, store: ModelStore, error: BundleError) -> Admission:
    """Refuse what is not a bundle this release reads, by the version that the nucleus names its folder after."""
    version = artifacts.name
    if not is_version(version):
        raise error
    question = f"{version} {error}"
    with store.lock():
        return store.verdict(question, _VERDICT_SECONDS) or store.refuse(version, str(error), question)


def main() -> int:
    """Admit one model; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedgrass.edge.admit", description=__doc__)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder that holds the new model's bundle")
    parser.add_argument("--store", type=Path, required=True, help="the model store")
    parser.add_argument(
        "--refusal", choices=("keep", "fail"), default="keep", help="whether a refused model fails its deployment"
    )
    arguments = parser.parse_args()
    logs.configure()
    log = Log("fedgrass.edge.admit", thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    store = ModelStore(arguments.store)
    try:
        # Forked first: threads and sockets of the connection to the nucleus are not the judge's.
        judge = ForkedChild(be_judge)
        ipc, runtime, deployer = _surroundings(log)
        admission = admit(
            arguments.artifacts,
            store,
            runtime,
            deployer,
            log.bind(fleet=runtime.fleet),
            judged=lambda case: judge_apart(case, start=lambda: judge),
        )
    except FedgrassError as error:
        log.log_event("admission_failed", code=error.code, reason=str(error))
        return EXIT_CONFIGURATION if isinstance(error, ConfigurationError) else EXIT_FAILED
    except OSError as error:
        reason = f"{error.filename or arguments.store}: {error.strerror}"
        log.log_event("admission_failed", code="admission", reason=reason)
        return EXIT_FAILED
    if admission is None:
        return 0
    log.log_event(
        "model_active" if admission.outcome == "active" else "model_refused",
        version=admission.version,
        reason=admission.reason,
        metrics=admission.metrics,
    )
    if ipc is not None:
        _publish(ipc, admission, log)
    return EXIT_FAILED if admission.outcome == "refused" and arguments.refusal == "fail" else 0


def _surroundings(log: Log) -> tuple[Ipc | None, RuntimeSettings, ModelDeployerSettings]:
    """Read the settings over IPC; by hand, outside a nucleus, a model is judged by its soundness alone.

    Under a nucleus that does not answer, the model is refused: without settings there are no data to judge it by.
    """
    # The nucleus puts this token into the environment of every component's process, and of nothing else.
    if "SVCUID" not in os.environ:
        log.log_event("nucleus_missing")
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
    # A roll-back is noted by ModelDeployer, which tells the cloud by itself.
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
        log.log_event("admission_not_told", error=str(error))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Not sys.exit: unloading the IPC and LiteRT libraries takes longer than all the rest.
    os._exit(code)
