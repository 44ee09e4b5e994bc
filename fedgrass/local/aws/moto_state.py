"""What the layer reads of moto's own state: things, topic rules, functions."""

from __future__ import annotations

from moto.awslambda.models import lambda_backends
from moto.iot.models import FakeRule, iot_backends
from moto.sts.models import sts_backends

from fedgrass.local.aws.account import ACCOUNT, REGION
from fedgrass.local.aws.functions.process import Function


def target_exists(target_arn: str) -> bool:
    """Tell whether a thing or thing group of that ARN exists."""
    iot = iot_backends[ACCOUNT][REGION]
    return target_arn in iot.thing_groups or target_arn in iot.things


def things_of(target_arn: str) -> list[str]:
    """Return the names of the things of a thing group, or of the one thing that the ARN names."""
    iot = iot_backends[ACCOUNT][REGION]
    if target_arn in iot.thing_groups:
        # Copies throughout this file, for moto changes its dictionaries on other threads.
        return [thing.thing_name for thing in list(iot.thing_groups[target_arn].things.values())]
    return [iot.things[target_arn].thing_name] if target_arn in iot.things else []


def is_session_key(access_key: str) -> bool:
    """Tell whether STS has given out this access key, to somebody who assumed a role."""
    # The latest first: a key in use is likely to be a recent one, and the list only grows.
    return any(role.access_key_id == access_key for role in reversed(sts_backends[ACCOUNT]["aws"].assumed_roles))


def topic_rules() -> list[FakeRule]:
    """Return the enabled IoT topic rules, as moto's objects."""
    return [rule for rule in list(iot_backends[ACCOUNT][REGION].rules.values()) if not rule.rule_disabled]


def functions() -> dict[str, tuple[Function, bytes]]:
    """Return every Lambda function by name, with its code."""
    found = {}
    for stored in list(lambda_backends[ACCOUNT][REGION].list_functions()):
        function = Function(
            name=stored.function_name,
            arn=stored.function_arn,
            handler=str(stored.handler),
            timeout=float(stored.timeout),
            memory=int(stored.memory_size),
            # Hashable and in one order: another value would mean another worker.
            # A parameter of type Number is text here, as Lambda has it; moto's CloudFormation gives a number.
            environment=tuple(sorted((name, str(value)) for name, value in (stored.environment_vars or {}).items())),
            code_sha256=stored.code_sha_256,
        )
        found[function.name] = (function, stored.code_bytes)
    return found


def failure_destination(function: str) -> str | None:
    """Return the ARN that a function's lost events go to, None if they go nowhere."""
    stored = lambda_backends[ACCOUNT][REGION].get_function(function)
    if not stored.event_invoke_config:
        return None
    chosen = stored.event_invoke_config[-1].config.get("DestinationConfig") or {}
    return (chosen.get("OnFailure") or {}).get("Destination")
