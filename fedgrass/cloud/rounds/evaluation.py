"""Rounds that evaluate: the fleet's current model on the examples that every device keeps back.

The figures come with the devices' notices, so no job is needed. They are the devices' word, and averaged as such
(`fedgrass.protocol.figures`): once all are there, because what one may weigh depends on the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedgrass.cloud.ending.outcome import end
from fedgrass.cloud.rounds.services import Services
from fedgrass.errors import MessageError
from fedgrass.protocol.figures import Claim, pooled
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.metrics import impossible, others
from fedgrass.protocol.participations import participations
from fedgrass.protocol.records import RoundRecord
from fedgrass.protocol.reported import reported
from fedgrass.protocol.sums import Sums


def check_figures(notice: UpdateNotice) -> None:
    """Raise `MessageError` if a notice of an evaluation lacks its figures, or they cannot be."""
    wrong = "loss" if "loss" not in notice.metrics else impossible(notice.metrics)
    if notice.num_examples < 1 or wrong:
        raise MessageError(
            f"{notice.thing!r} evaluated {notice.num_examples} examples with {dict(notice.metrics)}: "
            "expected at least one example, a loss, and shares such as the accuracy from 0 to 1 if any"
            + (f"; look at {wrong}" if wrong else "")
        )
    for text in (notice.sums, notice.base_sums):
        if text is not None:
            Sums.decode(text)


def _own(metrics: Mapping[str, float]) -> dict[str, float]:
    # Figures of the model's kind have their own place; the rest is the device's own, and only reported.
    known = {"loss", "accuracy", *others(metrics)}
    return {name: value for name, value in metrics.items() if name not in known}


def record_evaluation(services: Services, record: RoundRecord) -> RoundRecord:
    """Make what devices said in time the round's figures and outcome, unless it has one; returns the record as it is then.

    Call it when the round collects no more: then nothing is added to what was in time.
    """
    # Strongly consistent: the last notice came a moment ago, and it may be the one that completed the quorum.
    parts = participations(services.rounds, record.fleet, record.round, consistent=True)
    in_time = [part for part in parts if part.status == "evaluated" and not part.late]
    claims = [Claim(part.num_examples, part.metrics, {"": part.sums}) for part in in_time]
    found = pooled(claims, record.settings.checks)
    # No job and no gate: the figures are the outcome.
    return end(
        services.rounds,
        record,
        "evaluated",
        f"model {record.base.version} on {found.examples} examples of {record.contributed} devices",
        participants=record.contributed,
        evaluated_examples=found.examples,
        loss=found.figures.get("loss"),
        accuracy=found.figures.get("accuracy"),
        metrics=others(found.figures),
        reported=reported((part.num_examples, _own(part.metrics)) for part in in_time),
    )
