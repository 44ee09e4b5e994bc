"""Errors that an IPC operation answers with, by the names of their shapes in the SDK."""

from __future__ import annotations

from fedgrass.errors import FedgrassError


class IpcError(FedgrassError):
    """Base of the errors that travel to the component; ``shape`` is the name that the SDK maps to a class."""

    code = "ipc"
    shape = "ServiceError"
    fields: dict[str, str] = {}  # noqa: RUF012 - overridden as a whole, never changed in place

    def payload(self, *, with_text: bool) -> dict[str, str]:
        """Return the members of the shape, or none of them."""
        return {"message": str(self), **self.fields} if with_text else {}


class ServiceError(IpcError):
    """The nucleus could not do it, for a reason that is not the request's."""


class InvalidArgumentsError(IpcError):
    """A member of the request is missing or not acceptable."""

    shape = "InvalidArgumentsError"


class UnauthorizedError(IpcError):
    """No ``accessControl`` policy of the component allows it."""

    shape = "UnauthorizedError"


class FailedUpdateConditionCheckError(IpcError):
    """The update's timestamp is older than what it would overwrite."""

    shape = "FailedUpdateConditionCheckError"


class ResourceNotFoundError(IpcError):
    """The key or component does not exist."""

    shape = "ResourceNotFoundError"

    def __init__(self, message: str, *, resource_type: str = "", resource_name: str = "") -> None:
        super().__init__(message)
        self.fields = {"resourceType": resource_type, "resourceName": resource_name}
