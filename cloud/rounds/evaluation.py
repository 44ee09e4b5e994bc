"""Rounds that evaluate: the fleet's current model on the examples that every device keeps back.

The figures come with the devices' notices, and are added up as these are counted: no job is needed. They are the devices' word;
an example count weighs no more than the fleet's settings allow, and that is all that holds a liar.
"""

from __future__ import annotations

from cloud.ending.outcome import end
from cloud.rounds.services import Services
from fedgrass.errors import MessageError
from fedgrass.protocol.messages import UpdateNotice
from fedgrass.protocol.records import RoundRecord


def check_figures(notice: UpdateNotice) -> None:
    """Raise `MessageError` if a notice of an evaluation lacks its figures, or they cannot be."""
    accuracy = notice.metrics.get("accuracy", 0.0)
    if notice.num_examples < 1 or abs(notice.metrics.get("loss", float("inf"))) > 1e30 or not 0 <= accuracy <= 1:
        raise MessageError(
            f"{notice.thing!r} evaluated {notice.num_examples} examples with {dict(notice.metrics)}: "
            "expected at least one example, a loss, and an accuracy from 0 to 1 if any"
        )


def sums(notice: UpdateNotice, max_examples: int) -> dict[str, float]:
    """Return what a notice adds to the round's record."""
    examples = min(notice.num_examples, max_examples)
    added: dict[str, float] = {"evaluated_examples": examples, "evaluated_loss": notice.metrics["loss"] * examples}
    if "accuracy" in notice.metrics:
        added["evaluated_correct"] = notice.metrics["accuracy"] * examples
    return added


def record_evaluation(services: Services, record: RoundRecord) -> RoundRecord:
    """Make the sums the round's figures and outcome, unless it has one; returns the record as it is then."""
    examples = record.evaluated_examples
    loss, correct = record.evaluated_loss, record.evaluated_correct
    return end(
        services.rounds,
        record,
        "evaluated",
        f"model {record.base.version} on {examples} examples of {record.contributed} devices",
        participants=record.contributed,
        loss=None if loss is None else loss / examples,
        accuracy=None if correct is None else correct / examples,
    )
