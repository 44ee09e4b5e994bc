"""A new model on a few devices first: the fleet gets it only if they do not refuse it.

The canaries are a thing group of some of the fleet's devices. They get a subdeployment of the fleet's deployment, which on
them takes its place; the next deployment to the fleet takes its place in turn. The job waits for their word meanwhile: a
minute of its instance costs less than another path through the state machine would to understand.
https://docs.aws.amazon.com/greengrass/v2/developerguide/create-deployments.html (subdeployments)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedgrass.cloud.ending.canaries import canary_arn, deploy_to_canaries, latest
from fedgrass.cloud.ending.deployment import component_version, job_configuration
from fedgrass.errors import ReleaseError
from fedgrass.polling import poll
from fedgrass.protocol.records import CanaryTrial
from fedgrass.protocol.release_settings import Rollout

if TYPE_CHECKING:
    from mypy_boto3_greengrassv2 import GreengrassV2Client

__all__ = ["Canaries", "CanaryError", "Heard", "job_configuration"]

_LOOK_SECONDS = 1.0


class CanaryError(ReleaseError):
    """The canaries refuse a model, or say nothing of it; the fleet does not get it.

    Cause: The new model is worse on the canaries' data, or the canaries were off or silent for
    `rollout.canary_seconds`.

    Remedy: The round's record has their reasons. If they were silent, wake them or name other canaries, and
    start a round again; `fedgrass model release` releases the model that was held.
    """

    code = "canaries"


@dataclass(frozen=True)
class Heard:
    """The canaries' answers about the new model, and the round's outcome if it ended meanwhile."""

    active: int
    refused: int
    ended: str = ""


Ask = Callable[[Sequence[str], int], Heard]
"""Returns what some things have said since an epoch millisecond: nobody else's word counts, and none from before the try-out."""


class Canaries:
    """The canaries of a fleet.

    Parameters
    ----------
    heard
        Asked again and again for what they said since they were given the model.
    begin
        Told who is going to get the model, before they do: whoever closes the round takes it back from them. Returns False if
        the round has ended.
    """

    def __init__(
        self,
        rollout: Rollout,
        heard: Ask,
        *,
        begin: Callable[[CanaryTrial], bool] = lambda _: True,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rollout = rollout
        self._heard = heard
        self._begin = begin
        self._pause = pause
        self._clock = clock

    def try_out(self, greengrass: GreengrassV2Client, fleet_arn: str, component: str, version: str) -> None:
        """Deploy the component's version to the canaries, and wait for their word; safe to repeat.

        Where the fleet has no deployment yet there is nothing to compare a model with, so all devices get the first
        one.

        Parameters
        ----------
        greengrass
            The boto3 client.
        fleet_arn
            ARN of the fleet's thing group.
        component
            Name of the model component.
        version
            The version to try.

        Raises
        ------
        CanaryError
            If too many refuse it, or none answers in time. They are then given what the fleet has.
        """
        fleet = latest(greengrass, fleet_arn)
        if fleet is None:
            return
        group_arn = canary_arn(fleet_arn, self._rollout.canary_group)
        # Core devices only: a thing group may hold things that no nucleus runs on, which would never answer.
        pages = greengrass.get_paginator("list_core_devices").paginate(thingGroupArn=group_arn)
        things = sorted({device["coreDeviceThingName"] for page in pages for device in page["coreDevices"]})
        if not things:
            raise CanaryError(
                f"canary group {group_arn}: holds no core device; add some, or clear rollout.canary_group"
            )
        # What they have now, read before the trial: it is what they get back.
        had = component_version(fleet, component)
        if not self._begin(CanaryTrial(target=group_arn, before=had)):
            raise CanaryError(f"{component} {version}: the round ended before its canaries had it")
        # The deployment's own time, not this machine's: words are compared with it.
        began = deploy_to_canaries(greengrass, fleet, fleet_arn, group_arn, component, version)
        reason = self._await(things, int(began.timestamp() * 1000))
        if reason:
            deploy_to_canaries(greengrass, fleet, fleet_arn, group_arn, component, had)
            raise CanaryError(f"{component} {version}: {reason}; it went no further than {group_arn}")

    def _await(self, things: Sequence[str], began_ms: int) -> str:
        """Return why the fleet must not get the model; empty if it may."""
        count = len(things)
        # Monotonic: a clock that is set back must not make the job wait.
        deadline = self._clock() + self._rollout.canary_seconds

        def verdict(heard: Heard) -> str | None:
            # First: a cancelled round needs no more words.
            if heard.ended:
                return f"the round is {heard.ended}"
            # Before the count of answers: enough refusals decide without the rest.
            if heard.refused > self._rollout.abort_share * count:
                return f"{heard.refused} of {count} canaries refused it"
            return "" if heard.active + heard.refused >= count else None

        heard = poll(
            lambda: self._heard(things, began_ms),
            lambda heard: verdict(heard) is not None,
            until=lambda: deadline,
            pause=_LOOK_SECONDS,
            sleep=self._pause,
            clock=self._clock,
        )
        if (found := verdict(heard)) is not None:
            return found
        # Silent canaries are no refusal: one of them that runs the model is enough.
        return "" if heard.active else f"no canary made it active within {self._rollout.canary_seconds} s"
