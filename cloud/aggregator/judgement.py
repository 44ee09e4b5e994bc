"""The gate's word on a round's model: on the operator's evaluation set, else on the devices' figures, else on nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cloud.aggregator.evaluate import Evaluator, load_evaluation_set
from cloud.aggregator.gate import Verdict, judge
from cloud.aggregator.jury import Jury, verdicts
from cloud.aggregator.release import FleetClients, upload
from cloud.aggregator.report import ReportBuilder
from fedgrass.bundle import GRAPH, Bundle
from fedgrass.data import ArrayDataset
from fedgrass.errors import EngineError
from fedgrass.inference import inference_accuracy
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
    """Evaluate the new model and its base, note the figures in the report, and judge by them.

    A model without a LiteRT graph cannot be evaluated here: only devices can.
    """
    tolerance = record.settings.gate.tolerance
    data = load_evaluation_set(clients.bucket, record.fleet, scratch)
    if data is not None and new.manifest.graph_file == GRAPH:
        return _on_the_operators_set(report, data, base, new, tolerance)
    if record.settings.gate.devices_seconds:
        return _on_the_devices(record, clients, report, new, clock)
    return judge(None, None, tolerance=tolerance)


def _on_the_operators_set(
    report: ReportBuilder, data: ArrayDataset, base: Bundle, new: Bundle, tolerance: float
) -> Verdict:
    evaluator = Evaluator(new, data)
    report.evaluation_base = evaluator.evaluate(base.parameters())
    try:
        report.evaluation = evaluator.evaluate(new.parameters())
        report.inference_accuracy = inference_accuracy(new, data)
    except EngineError as error:
        return Verdict(False, f"{error}: the base stays")
    return judge(report.evaluation_base, report.evaluation, tolerance=tolerance)


def _on_the_devices(
    record: RoundRecord, clients: FleetClients, report: ReportBuilder, new: Bundle, clock: Callable[[], datetime]
) -> Verdict:
    model = upload(new, clients.bucket, record.fleet)
    heard = Jury(record, clients.rounds, clients.iot_data, clients.bucket.name, now=clock).hear(model)
    report.evaluated_by_devices = heard.judged
    found, needed = verdicts(heard), record.settings.min_updates
    if found is None or heard.judged < needed:
        return Verdict(False, f"{heard.judged} devices evaluated the model, {needed} are needed: the base stays")
    report.evaluation_base, report.evaluation = found
    verdict = judge(*found, tolerance=record.settings.gate.tolerance)
    return Verdict(verdict.passed, f"{verdict.reason}; on {found[1].examples} examples of {heard.judged} devices")
