"""Every failure a user can meet, as a small tree with codes that the docs list."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_problem(error: ValidationError, whole: str = "document", *, prefix: str = "", found: bool = False) -> str:
    """Describe the first field that is wrong in a document, in one line.

    Parameters
    ----------
    error
        What pydantic raised.
    whole
        Stands for the field where the document is wrong as such.
    prefix
        Comes before the field's name.
    found
        Whether the value may be told; never for secrets.

    Returns
    -------
    str
        The field and what is wrong with it.
    """
    # One at a time: most often the others follow from the first.
    first = error.errors()[0]
    where = prefix + ".".join(str(part) for part in first["loc"]) if first["loc"] else whole
    problem = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
    problem = problem.removeprefix("Value error, ")  # said by a validator of ours, as a sentence that stands alone
    # A sentence of ours about the document as such names the fields that it is about; the whole document would hide it.
    told = found and (first["loc"] or first["type"] != "value_error")
    return f"{where}: {problem}" + (f" (found {str(first.get('input'))[:80]})" if told else "")


def first_field(error: ValidationError) -> str:
    """Return the name of the first field that is wrong; empty if the document is wrong as such."""
    place = error.errors()[0]["loc"]
    return str(place[0]) if place else ""


class FedgrassError(Exception):
    """Base of all errors raised on purpose.

    The message names the thing, what was expected, what was found and what to do. ``code`` is stable: it
    appears in logs, in reports and in the reference of error codes.
    """

    code = "fedgrass"


class ConfigurationError(FedgrassError):
    """A setting or a recipe's configuration is missing or out of range.

    Cause: A value was misspelt, or moved between versions; or a folder or a file that an option names is not
    there.

    Remedy: Correct what the message names; [configuration](configuration.md) has every setting with its bounds.
    """

    code = "configuration"


class MessageError(FedgrassError):
    """A message is malformed, too large, or meant for another schema.

    Cause: A device and a cloud of different versions, or another program that publishes on fedgrass's topics.

    Remedy: Bring the older side up to date; if the topic has other writers, take the right to publish from
    them.
    """

    code = "message"


class BundleError(FedgrassError):
    """A model bundle is incomplete, altered, or not what its manifest says.

    Cause: A copy that was cut short, a file that was edited, or a bundle of another model.

    Remedy: Fetch or export the bundle again; `fedgrass model inspect DIR` checks one.
    """

    code = "bundle"


class TensorFileError(FedgrassError):
    """A safetensors file is malformed, truncated, or larger than its bound.

    Cause: The file is not safetensors, or not of this model.

    Remedy: Write it again; never edit one.
    """

    code = "tensor_file"


class TruncatedFileError(TensorFileError):
    """A safetensors file ends before what its header promises.

    Cause: A copy or an upload was cut short; a full disk.

    Remedy: Copy it again; look at the disk's free space.
    """

    code = "truncated"


class DataError(FedgrassError):
    """Training data are missing, empty, or do not fit the model.

    Cause: The path in the configuration is wrong, a device has no data yet, or labels and shapes are not the
    model's.

    Remedy: The message names the file and the first example that does not fit; correct `data` in the
    configuration of com.fedgrass.Runtime, or the loader.
    """

    code = "data"


class EngineError(FedgrassError):
    """A training engine is missing, or cannot run the model it was given.

    Cause: `engine` or `builder` in the configuration names something that is not installed, or a model of
    another engine.

    Remedy: Install the engine's extra on the devices, or correct the name; [models](../models.md) lists the
    engines.
    """

    code = "engine"


class DivergedError(EngineError):
    """The loss stopped being finite; the base parameters were kept.

    Cause: A learning rate that is too high for the data, or data that are not scaled.

    Remedy: Lower `fit.learning_rate`, set `fit.gradient_clip_norm`, or scale the inputs in the loader.
    """

    code = "diverged"


class NoFiguresError(EngineError):
    """A Flower app does not evaluate, or its evaluation tells no loss, by which models are compared.

    Cause: The `ClientApp` has no `@app.evaluate()`, or its reply has no metric with `loss` in its name.

    Remedy: None is needed to train: such a model is admitted without being compared. To have it judged, reply with
    a loss.
    """

    code = "no_figures"


class AdmissionError(FedgrassError):
    """A new model was refused on this device; the active one stays.

    Cause: The model is worse on this device's data than the active one, too slow, too large, or broken.

    Remedy: The reason has the figure and its bound. If many devices refuse, the model is at fault: [roll
    back](../how-to/roll-back.md). If one does, look at its data; the bounds are settings of
    com.fedgrass.ModelDeployer.
    """

    code = "admission"


class TransferError(FedgrassError):
    """An upload or a download did not complete.

    Cause: No link, a full disk, no rights, or Stream Manager is not running.

    Remedy: It is tried again by itself. If it stays: the device's link and disk, and the token-exchange role's
    rights ([device](device.md#rights)).
    """

    code = "transfer"


class RoundRefusedError(FedgrassError):
    """A round cannot open now (one is open, or too few devices are fit).

    Cause: Another round is open, or fewer devices than `min_devices` are alive and able.

    Remedy: Wait for the round or `fedgrass round cancel`; `fedgrass fleet list` says why a device is not able.
    """

    code = "round_refused"


class PrivacyLimitError(FedgrassError):
    """A round or a command asks for more than the device's owner lets it tell.

    Cause: The device's account of its privacy would pass `maxEpsilon`, or training would be on fewer examples or steps than
    `minExamples` and `minSteps` allow.

    Remedy: Ask for less: more noise, fewer rounds, more examples. The limits are the owner's, in the configuration of
    com.fedgrass.Trainer.
    """

    code = "privacy_limit"


class CommandError(FedgrassError):
    """A command to one device was not done.

    Cause: The device refused it or failed at it, and the message has its reason; or it has not answered yet.

    Remedy: Do what the reason says. A device that is offline is reached by sending the command again once
    `fedgrass fleet list` shows it alive.
    """

    code = "command"


class UpdateError(FedgrassError):
    """An update is refused. ``code`` is the reason that reports and figures count (`fedgrass.update.header.Reason`)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ReleaseError(FedgrassError):
    """A model version could not be published or deployed; running again continues where it stopped.

    Cause: Greengrass refused the component or the deployment, or somebody else changed the deployment at the
    same moment.

    Remedy: Run the round's job again: it goes on where it stopped. The message has AWS's own reason.
    """

    code = "release"


class RecordError(FedgrassError):
    """An item of a table is missing, or is not what this version reads.

    Cause: The table was edited by hand, or written by a newer version.

    Remedy: Bring the older side up to date; an item that was edited by hand has to be put right by hand.
    """

    code = "record"


class AggregationError(FedgrassError):
    """The Processing job of a round could not be started, failed, or left no report.

    Cause: No such instance type or a quota of 0, an image that cannot be pulled, too little memory or disk.

    Remedy: The round's reason names the job; its log is under SageMaker → Processing jobs. Start it again on a
    larger machine: [operations](../operations.md#round-failed).
    """

    code = "aggregation"


class DeclinedError(AggregationError):
    """A strategy makes nothing of a round's updates, although there are enough.

    Cause: A strategy of Flower's that does not accept failures, or wants a larger share of the devices.

    Remedy: See why devices failed (`fedgrass round status`). The model is unchanged, and the next round starts from it.
    """

    code = "declined"


class HelpersMissingError(AggregationError):
    """Too few helpers gave the sums of the masks, so the sum of the updates stays closed.

    Cause: Helpers were off, or refused: the message names each and why.

    Remedy: See that the helpers run; the next round asks them again. The model is unchanged.
    """

    code = "helpers_missing"


class OutOfMemoryError(AggregationError):
    """The Processing job of a round ran out of memory.

    Cause: A model or a cohort that is larger than the machine allows.

    Remedy: Nothing at first: the round starts its job once more, on the next larger machine, unless
    ``aggregation.retry_larger`` is false. If that one is too small as well, set ``aggregation.instance_type``.
    """

    code = "out_of_memory"


class InfrastructureError(FedgrassError):
    """The fleet's stack could not be deployed, or is not in a state to be used.

    Cause: The stack was never deployed, is being changed, or an operation on it failed.

    Remedy: The message has CloudFormation's own reason; [on an AWS
    account](../aws.md#when-something-is-refused).
    """

    code = "infrastructure"


class IpcError(FedgrassError):
    """The nucleus cannot be reached over IPC, or will not do what was asked.

    Cause: The nucleus is restarting, or a component was started by hand, outside it.

    Remedy: It is tried again by itself; if it stays, restart the nucleus, and start components through a
    deployment only.
    """

    code = "ipc"


class IpcRefusedError(IpcError):
    """The nucleus did not take a message or an operation now (no link, spool full, reconnecting): try again later.

    Cause: No link, and the nucleus's spool is full.

    Remedy: Nothing: messages wait on the device's disk and are sent in order.
    """

    code = "ipc_refused"


class IpcUnauthorizedError(IpcError):
    """``accessControl`` does not allow the component this operation on this topic.

    Cause: The deployment overwrites `accessControl` of the component, or names the fleet differently from it.

    Remedy: Remove `accessControl` from the deployment's merge, or give it the topics of the recipe.
    """

    code = "ipc_unauthorized"
