"""What can be done about a stack, by the state in which CloudFormation left it.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/view-stack-events.html
"""

from __future__ import annotations

from fedgrass.errors import InfrastructureError

_FINISHED = {
    "DELETE_COMPLETE",
    "CREATE_COMPLETE",
    "UPDATE_COMPLETE",
    "UPDATE_ROLLBACK_COMPLETE",
    "IMPORT_COMPLETE",
    "IMPORT_ROLLBACK_COMPLETE",
}
_EVENTS = "aws cloudformation describe-stack-events --stack-name {name}"
# Nothing of these ever worked, or all of it was to go: no fleet lives there.
_NEVER_LIVED = {"CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED"}
_ADVICE = {
    "UPDATE_ROLLBACK_FAILED": (
        "the fleet goes on as it is. See why ("
        + _EVENTS
        + "), mend that, then: aws cloudformation continue-update-rollback "
        "--stack-name {name}, with --resources-to-skip for what cannot be mended; then deploy again. Do not delete the stack"
    ),
    "UPDATE_FAILED": (
        "the fleet goes on as it is. See why ("
        + _EVENTS
        + "), then: aws cloudformation rollback-stack --stack-name {name}; "
        "then deploy again"
    ),
    "IMPORT_ROLLBACK_FAILED": (
        "an import of resources could not be taken back: see why ("
        + _EVENTS
        + "), and finish it in the console. Do not "
        "delete the stack"
    ),
    "DELETE_FAILED": "it was being removed: run scripts/destroy again, it goes on where it stopped; then deploy",
    "REVIEW_IN_PROGRESS": (
        "a change set made it and was never executed: aws cloudformation delete-stack --stack-name {name}, then deploy"
    ),
}


def check_changeable(name: str, fleet: str, status: str | None) -> None:
    """Check that a stack can be created or updated.

    Parameters
    ----------
    name
        The stack's name.
    fleet
        The fleet's name, for the advice.
    status
        The stack's status; None if there is no stack.

    Raises
    ------
    InfrastructureError
        If it cannot; the message says what to do.
    """
    if status is None or status in _FINISHED:
        return
    if status in _ADVICE:
        raise InfrastructureError(
            f"stack {name} cannot be updated in state {status}: {_ADVICE[status].format(name=name)}"
        )
    if status.endswith("_IN_PROGRESS"):
        raise InfrastructureError(f"stack {name} is being changed ({status}); wait until that is done, then try again")
    # After the states with advice of their own: these can only be removed.
    if status in _NEVER_LIVED:
        raise InfrastructureError(
            f"stack {name} cannot be updated in state {status}: its creation failed, so there is no fleet yet. See why "
            f"({_EVENTS.format(name=name)}), remove it with scripts/destroy --fleet {fleet}, then deploy again"
        )
    raise InfrastructureError(
        f"stack {name} is in state {status}, which is not known here; see {_EVENTS.format(name=name)}, and do not delete it"
    )
