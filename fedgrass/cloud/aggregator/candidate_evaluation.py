"""Judge a candidate model: by the operator's evaluation set, else by the devices' figures, else release it unjudged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from fedgrass.bundle import GRAPH, Bundle
from fedgrass.cloud.aggregator.device_evaluation import DeviceEvaluation, verdicts
from fedgrass.cloud.aggregator.evaluate import (
    DEVICES,
    Evaluator,
    evaluation_file,
    evaluation_set_sha256,
    load_best,
    load_evaluation_set,
)
from fedgrass.cloud.aggregator.own_engine import OwnEngine
from fedgrass.cloud.aggregator.release import FleetClients, upload
from fedgrass.cloud.aggregator.release_gate import Verdict, judge_by, partly_local, raised
from fedgrass.cloud.aggregator.report import ReportBuilder
from fedgrass.data import ArrayDataset
from fedgrass.errors import ConfigurationError, EngineError
from fedgrass.inference import inference_accuracy
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord


def judged_model(
    record: RoundRecord,
    clients: FleetClients,
    report: ReportBuilder,
    base: Bundle,
    new: Bundle,
    scratch: Path,
    clock: Callable[[], datetime],
) -> Verdict:
    """Evaluate the new model and its base, note the figures in the report, and judge by them and by the best so far.

    A model without a LiteRT graph is evaluated with the engine that the operator's image names (`own_engine`); without one
    only devices can. They alone can judge a model of which they keep parameters for themselves: where they are asked, the
    operator's set is not looked at; else its figures are of the values that those parameters had at export, and hold nothing.

    Parameters
    ----------
    record
        The round, with its gate's settings.
    clients
        The fleet's storage and services.
    report
        Takes the figures of base and model.
    base, new
        The bundles.
    scratch
        Folder for the evaluation set.
    clock
        The time, by which the wait for the devices' figures ends.

    Returns
    -------
    Verdict
        Passed, if nobody can evaluate the model.
    """
    # The order of the choices: the operator's set, the operator's own engine, the devices, nobody.
    local, by_devices = bool(new.manifest.local_parameters), bool(record.settings.gate.devices_seconds)
    data = (
        load_evaluation_set(clients.bucket, record.fleet, scratch, new.manifest) if not (local and by_devices) else None
    )
    # Read from the image's environment and from nowhere else: it names code that is run.
    own = OwnEngine.named_in(os.environ)
    if data is not None and new.manifest.graph_file == GRAPH:
        verdict, evaluation_set = _on_the_operators_set(report, data, base, new), evaluation_set_sha256(scratch)
    elif data is not None and own is not None:
        verdict = _with_the_operators_code(report, own, base, new, evaluation_file(scratch))
        evaluation_set = evaluation_set_sha256(scratch)
    elif by_devices:
        verdict, evaluation_set = _on_the_devices(record, clients, report, new, clock), DEVICES
    else:
        return partly_local() if local else judge_by(record.settings.gate, None, None)
    # A verdict already: the model has no figures, so there is nothing to compare.
    if verdict is not None:
        return verdict
    if local and not by_devices:
        return partly_local()
    return _against_the_best(record, clients, report, evaluation_set)


def _against_the_best(
    record: RoundRecord, clients: FleetClients, report: ReportBuilder, evaluation_set: str
) -> Verdict:
    gate, base, new = record.settings.gate, report.evaluation_base, report.evaluation
    if new is None:
        return judge_by(gate, None, None)
    if base is None:
        return Verdict(True, f"loss {new.loss:.4f}; the base's is not finite, so any model with figures is better")
    # The best stays beside the base, so a fleet that was rolled back is measured by what it had then.
    known = None if gate.forget_best else load_best(clients.bucket, record.base)
    # The base counts for the best, too: it may be the first model that was ever evaluated.
    report.best = raised(known, base, evaluation_set)
    verdict = judge_by(gate, base, new, report.best)
    if report.evaluated_by_devices:
        by = f"; on {new.examples} examples of {report.evaluated_by_devices} devices"
        verdict = replace(verdict, reason=verdict.reason + by)
    return verdict


def _on_the_operators_set(report: ReportBuilder, data: ArrayDataset, base: Bundle, new: Bundle) -> Verdict | None:
    """Note base's and model's figures; returns a verdict only where the model has none."""
    from fedgrass.engines.litert import LiteRTEngine  # takes a quarter of a second: only where there are data

    evaluator = Evaluator(LiteRTEngine(new), data)
    with contextlib.suppress(EngineError):  # a base without figures must not keep a model with some from being released
        report.evaluation_base = evaluator.evaluate(base.parameters())
    try:
        report.evaluation = evaluator.evaluate(new.parameters())
        report.inference_accuracy = inference_accuracy(new, data)
    except EngineError as error:
        return Verdict(False, f"{error}: the base stays", "not_finite")
    return None


def _with_the_operators_code(
    report: ReportBuilder, own: OwnEngine, base: Bundle, new: Bundle, data: Path
) -> Verdict | None:
    try:
        report.evaluation_base, report.evaluation = own.evaluate(base, new, data)
    except EngineError as error:
        return Verdict(False, f"{error}: the base stays", "not_finite")
    return None


def _on_the_devices(
    record: RoundRecord, clients: FleetClients, report: ReportBuilder, new: Bundle, clock: Callable[[], datetime]
) -> Verdict | None:
    # To the bucket only, where devices fetch it from; no component version, so no deployment can pick it up.
    model = upload(new, clients.bucket, record.fleet)
    if clients.iot_data is None:
        raise ConfigurationError(
            "devices are to evaluate the model (gate.devices_seconds), but this job has no client of IoT Core"
        )
    heard = DeviceEvaluation(record, clients.rounds, clients.iot_data, clients.bucket.name, now=clock).hear(model)
    report.evaluated_by_devices = heard.judged
    # A strongly consistent read: the last figures were written a moment ago, and they are in the counts.
    parts = participations(clients.rounds, record.fleet, record.round, consistent=True)
    found, needed = verdicts(parts, record.settings.checks), record.settings.min_updates
    if found is None or heard.judged < needed:
        reason = f"{heard.judged} devices evaluated the model, {needed} are needed: the base stays"
        return Verdict(False, reason, "figures")
    report.evaluation_base, report.evaluation = found
    return None
