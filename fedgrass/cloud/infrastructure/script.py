"""Shared parts of the scripts: checks before changes, a line for each step, and errors that say what to do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import boto3
import botocore.session
import typer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from fedgrass.errors import ConfigurationError, FedgrassError

if TYPE_CHECKING:
    from boto3 import Session

T = TypeVar("T")
P = ParamSpec("P")

Fleet = Annotated[str, typer.Option("--fleet", "-f", envvar="FEDGRASS_FLEET", help="Name of the fleet.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")]

_ADVICE = {
    "Throttling": "AWS is asked too often: wait a minute and run it again, it goes on where it stopped",
    "LimitExceeded": "a quota of the account is reached: free some, or ask for more in the Service Quotas console",
    "AccessDenied": "these credentials may not do it: use others, or have the action allowed",
    "ExpiredToken": "the credentials have expired: sign in again",
    "ValidationError": "see the parameter that it names",
    "BucketAlreadyExists": "the bucket's name is taken, names are unique in all of AWS: choose another",
    "BucketAlreadyOwnedByYou": "the bucket exists in this account, outside this stack: choose another name, or delete it",
    "TooManyTagsException": "remove tags",
}
_ALIKE = {
    "ThrottlingException": "Throttling",
    "TooManyRequestsException": "Throttling",
    "RequestLimitExceeded": "Throttling",
    "SlowDown": "Throttling",
    "LimitExceededException": "LimitExceeded",
    "ServiceQuotaExceededException": "LimitExceeded",
    "ResourceLimitExceeded": "LimitExceeded",
    "AccountLimitExceededException": "LimitExceeded",
    "AccessDeniedException": "AccessDenied",
    "UnauthorizedException": "AccessDenied",
    "UnauthorizedOperation": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "InvalidClientTokenId": "ExpiredToken",
    "UnrecognizedClientException": "ExpiredToken",
}


# What AWS says while it is still at what it was asked before; DeleteThing has no code of its own for it.
_NOT_YET = {"DeleteConflictException", "ConflictException", "OperationAbortedException", "BucketNotEmpty"}
_STILL_ATTACHED = "still attached"
_GONE = {
    *("ResourceNotFoundException", "ResourceNotFound", "NoSuchBucket", "NoSuchKey", "404"),
    *("StateMachineDoesNotExist", "ExecutionDoesNotExist", "NoSuchEntity"),
}
# A policy can be deleted up to five minutes after it was detached.
_PATIENCE_S = 360.0


def error_code(error: BaseException) -> str:
    """Return the code of an error that AWS answered; empty for any other."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def is_gone(error: BaseException) -> bool:
    """Whether AWS says that what was named is not there (SageMaker and CloudFormation have no code for it)."""
    code = error_code(error)
    # Only the text tells a missing thing from a wrong parameter there.
    missing = code in {"ValidationException", "ValidationError"} and re.search(
        r"does not exist|not found|could not find", str(error), re.IGNORECASE
    )
    return code in _GONE or bool(missing)


def _is_not_yet(error: BaseException) -> bool:
    return error_code(error) in _NOT_YET or (isinstance(error, ClientError) and _STILL_ATTACHED in str(error))


def removed(action: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
    """Call what removes something, until AWS has done what it waits for; what is gone already is fine."""
    attempts = Retrying(
        retry=retry_if_exception(_is_not_yet),
        wait=wait_exponential_jitter(multiplier=0.1, max=10, jitter=0.1),
        stop=stop_after_delay(_PATIENCE_S),
        reraise=True,
    )
    try:
        attempts(action, *arguments, **named)
    except ClientError as error:
        if not is_gone(error):
            raise


@dataclass(frozen=True)
class Caller:
    """Who runs a script, and where."""

    account: str
    region: str
    partition: str


def identify(session: Session) -> Caller:
    """Return who calls; raises `ConfigurationError` without a region or valid credentials."""
    # Looked at before the first call: botocore's own errors do not say what to set.
    if not session.region_name:
        raise ConfigurationError("no AWS region: set AWS_REGION, or a region in the profile that AWS_PROFILE names")
    if session.get_credentials() is None:
        raise ConfigurationError("no AWS credentials: run `aws configure` or `aws sso login`, or set AWS_PROFILE")
    arn = session.client("sts").get_caller_identity()["Arn"].split(":")
    return Caller(account=arn[4], region=session.region_name, partition=arn[1])


def own_session() -> Any:
    """Return a boto3 session of the environment."""
    # AWS_REGION is what Greengrass, Lambda and the console's shell set; boto3 itself reads only AWS_DEFAULT_REGION.
    core = botocore.session.Session()
    # Ten tries: a script makes hundreds of calls, and IoT Core's control plane allows few a second.
    core.set_default_client_config(Config(retries={"mode": "standard", "max_attempts": 10}))
    return boto3.Session(region_name=os.environ.get("AWS_REGION"), botocore_session=core)


class Steps:
    """Run a script's steps one by one, or only print them."""

    def __init__(self, *, dry_run: bool, tell: Callable[[str], object] = typer.echo) -> None:
        self.dry_run = dry_run
        self.tell = tell

    def do(self, what: str, action: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | None:
        """Print the step, and call ``action``; in a dry run only print it, and return None."""
        self.tell(f"would {what}" if self.dry_run else what)
        return None if self.dry_run else action(*arguments, **named)


def advice(error: ClientError) -> str:
    """Return what AWS said and what to do about it."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    what = _ADVICE.get(_ALIKE.get(code, code))
    return f"{error.operation_name}: {code}: {message}" + (f" - {what}" if what else "")


def run(main: Callable[..., None]) -> None:
    """Run a script's main function as a command; every failure that a user can meet is one message and exit code 1."""
    # Typer's own tracebacks could show locals, credentials among them.
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        app()
    except FedgrassError as error:
        reason = str(error)
    except ClientError as error:
        reason = advice(error)
    except BotoCoreError as error:
        reason = f"AWS could not be asked: {error}; check credentials, region and network"
    sys.stderr.write(f"{reason}\n")
    sys.exit(1)
