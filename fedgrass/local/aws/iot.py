"""IoT Core's control plane where moto is kinder than AWS: what was detached still counts as attached for a while.

AWS answers DetachThingPrincipal and DetachPolicy at once and does the work later: seconds for a thing, up to five minutes
for a policy. Until then what they were attached to cannot be deleted. Here it takes `LAG_S`.
https://docs.aws.amazon.com/iot/latest/apireference/API_DeletePolicy.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from moto.iot.exceptions import (
    DeleteConflictException,
    InvalidRequestException,
    ResourceAlreadyExistsException,
    ThingStillAttached,
)
from moto.iot.models import FakeCertificate, FakePolicy, FakeThing, IoTBackend

from fedgrass.local.aws.overrides import override

LAG_S = 0.3
_MAX_POLICY = 2048  # characters, spaces not counted


class _Lag:
    """What was detached a moment ago, and so cannot be deleted yet."""

    def __init__(self, lag: float, clock: Callable[[], float]) -> None:
        self._lag = lag
        self._clock = clock
        self._until: dict[
            tuple[str, str], float
        ] = {}  # of things, certificates and policies, each by its kind and name

    def holds(self, kind: str, name: str) -> bool:
        """Whether it still counts as attached."""
        return self._clock() < self._until.get((kind, name), 0.0)

    def hold(self, *detached: tuple[str, str]) -> None:
        """Count these as attached for a while."""
        self._until.update(dict.fromkeys(detached, self._clock() + self._lag))


def repair(*, lag: float = LAG_S, clock: Callable[[], float] = time.monotonic) -> None:
    """Make moto's IoT lag behind itself as AWS does, make no thing a second time, and bound policies' size."""
    known = _Lag(lag, clock)
    _detach_later(known)
    _delete_when_detached(known)
    _create_as_aws()


def _detach_later(lag: _Lag) -> None:
    detach_thing, detach_policy = IoTBackend.detach_thing_principal, IoTBackend.detach_policy

    def detach_thing_later(backend: IoTBackend, thing_name: str, principal_arn: str) -> None:
        detach_thing(backend, thing_name, principal_arn)
        # The certificate too: AWS refuses to delete either while they count as attached to each other.
        lag.hold(("thing", thing_name), ("certificate", principal_arn.rpartition("/")[2]))

    def detach_policy_later(backend: IoTBackend, policy_name: str, target: str) -> None:
        detach_policy(backend, policy_name, target)
        lag.hold(("policy", policy_name))

    override(IoTBackend, "detach_thing_principal", detach_thing_later)
    override(IoTBackend, "detach_policy", detach_policy_later)


def _delete_when_detached(lag: _Lag) -> None:
    delete_thing, delete_policy = IoTBackend.delete_thing, IoTBackend.delete_policy
    delete_certificate = IoTBackend.delete_certificate

    def delete_thing_then(backend: IoTBackend, thing_name: str) -> None:
        if lag.holds("thing", thing_name):
            raise ThingStillAttached(thing_name)
        delete_thing(backend, thing_name)

    def delete_policy_then(backend: IoTBackend, policy_name: str) -> None:
        if lag.holds("policy", policy_name):
            raise DeleteConflictException(
                f"The policy cannot be deleted as the policy is attached to one or more principals (name={policy_name})"
            )
        delete_policy(backend, policy_name)

    def delete_certificate_then(backend: IoTBackend, certificate_id: str, force_delete: bool) -> None:
        if lag.holds("certificate", certificate_id):
            raise DeleteConflictException(f"Things must be detached before deletion (id: {certificate_id})")
        delete_certificate(backend, certificate_id, force_delete)
        # AWS takes its policies off a certificate that is deleted by force; moto leaves them attached to what is
        # gone.
        for arn, policy in [key for key in backend.principal_policies if key[0].endswith(f"/{certificate_id}")]:
            del backend.principal_policies[arn, policy]
            lag.hold(("policy", policy))

    override(IoTBackend, "delete_thing", delete_thing_then)
    override(IoTBackend, "delete_policy", delete_policy_then)
    override(IoTBackend, "delete_certificate", delete_certificate_then)


def _create_as_aws() -> None:
    create_thing, create_policy = IoTBackend.create_thing, IoTBackend.create_policy
    sign = IoTBackend.create_certificate_from_csr

    def sign_as_asked(backend: IoTBackend, csr: str, set_as_active: bool) -> FakeCertificate:
        certificate = sign(backend, csr, set_as_active)
        # moto takes the text "false" for true
        certificate.status = "ACTIVE" if str(set_as_active).lower() == "true" else "INACTIVE"
        return certificate

    def create_thing_once(backend: IoTBackend, thing_name: str, *arguments: Any, **named: Any) -> FakeThing:
        # CreateThing is idempotent for equal attributes and a conflict for others; moto makes a second thing of the
        # name.
        existing = next((thing for thing in list(backend.things.values()) if thing.thing_name == thing_name), None)
        payload = named.get("attribute_payload", arguments[1] if len(arguments) > 1 else None) or {}
        if existing is None:
            return create_thing(backend, thing_name, *arguments, **named)
        if existing.attributes == payload.get("attributes", {}):
            return existing
        raise ResourceAlreadyExistsException(
            f"Thing {thing_name} already exists in account with different attributes", existing.thing_name, existing.arn
        )

    def create_policy_within(backend: IoTBackend, policy_name: str, policy_document: dict[str, Any]) -> FakePolicy:
        size = len("".join(str(policy_document).split()))
        if size > _MAX_POLICY:
            raise InvalidRequestException(f"The policy document has {size} characters; it can have {_MAX_POLICY}")
        return create_policy(backend, policy_name, policy_document)

    override(IoTBackend, "create_certificate_from_csr", sign_as_asked)
    override(IoTBackend, "create_thing", create_thing_once)
    override(IoTBackend, "create_policy", create_policy_within)
