"""Every failure a user can meet, as a small tree with codes that the docs list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_problem(error: ValidationError, whole: str = "document") -> str:
    """Return the first field that is wrong and why; ``whole`` stands for a document that is wrong as such."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    return f"{where}: {first['msg']}"


class FedgrassError(Exception):
    """Base of all errors raised on purpose.

    The message names the thing, what was expected, what was found and what to do. ``code`` is stable: it
    appears in logs, in reports and in the reference of error codes.
    """

    code = "fedgrass"


class ConfigurationError(FedgrassError):
    """A setting or a recipe's configuration is missing or out of range."""

    code = "configuration"


class MessageError(FedgrassError):
    """A message is malformed, too large, or meant for another schema."""

    code = "message"


class BundleError(FedgrassError):
    """A model bundle is incomplete, altered, or not what its manifest says."""

    code = "bundle"


class TensorFileError(FedgrassError):
    """A safetensors file is malformed, truncated, or larger than its bound."""

    code = "tensor_file"


class TruncatedFileError(TensorFileError):
    """A safetensors file ends before what its header promises."""

    code = "truncated"


class DataError(FedgrassError):
    """Training data are missing, empty, or do not fit the model."""

    code = "data"


class EngineError(FedgrassError):
    """A training engine is missing, or cannot run the model it was given."""

    code = "engine"


class DivergedError(EngineError):
    """The loss stopped being finite; the base parameters were kept."""

    code = "diverged"


class AdmissionError(FedgrassError):
    """A new model was refused on this device; the active one stays."""

    code = "admission"


class TransferError(FedgrassError):
    """An upload or a download did not complete."""

    code = "transfer"


class RoundRefusedError(FedgrassError):
    """A round cannot open now (one is open, or too few devices are fit)."""

    code = "round_refused"


class UpdateError(FedgrassError):
    """An update is refused. ``code`` is the reason that reports and figures count (`fedgrass.update.header.Reason`)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ReleaseError(FedgrassError):
    """A model version could not be published or deployed; running again continues where it stopped."""

    code = "release"


class RecordError(FedgrassError):
    """An item of a table is missing, or is not what this version reads."""

    code = "record"


class AggregationError(FedgrassError):
    """The Processing job of a round could not be started, failed, or left no report."""

    code = "aggregation"


class InfrastructureError(FedgrassError):
    """The fleet's stack could not be deployed, or is not in a state to be used."""

    code = "infrastructure"


class IpcError(FedgrassError):
    """The nucleus cannot be reached over IPC, or will not do what was asked."""

    code = "ipc"


class IpcRefusedError(IpcError):
    """The nucleus did not take a message or an operation now (no link, spool full, reconnecting): try again later."""

    code = "ipc_refused"


class IpcUnauthorizedError(IpcError):
    """``accessControl`` does not allow the component this operation on this topic."""

    code = "ipc_unauthorized"
