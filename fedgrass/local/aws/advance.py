"""``python -m fedgrass.local.aws.advance 900``: let time pass for schedules and alarms of the local AWS, in no time."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from datetime import datetime
from typing import Annotated

import typer

from fedgrass.errors import ConfigurationError, FedgrassError
from fedgrass.local.aws.account import REGION


def advance(endpoint_url: str, access_key: str, seconds: float) -> datetime:
    """Let time pass, with all that becomes due in it; return the account's time then.

    Parameters
    ----------
    endpoint_url, access_key
        Of the account.
    seconds
        A day's at most.

    Raises
    ------
    ConfigurationError
        If there is no such account, or it refuses.
    """
    signed = f"AWS4-HMAC-SHA256 Credential={access_key}/20200101/{REGION}/clock/aws4_request"
    headers = {"Authorization": signed, "Content-Type": "application/json"}
    body = json.dumps({"seconds": seconds}).encode()
    request = urllib.request.Request(endpoint_url, body, headers)  # noqa: S310 - the endpoint's own address
    try:
        # Past any proxy, which cannot reach this machine's loopback.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return datetime.fromisoformat(json.load(answer)["now"])
    except urllib.error.HTTPError as error:
        raise ConfigurationError(f"{endpoint_url} refuses: {json.load(error)['message']}") from error
    except (OSError, KeyError, ValueError) as error:
        raise ConfigurationError(f"No local AWS answers at {endpoint_url}: {error}.") from error


def main(seconds: Annotated[float, typer.Argument(help="How much time passes; a day's at most.")]) -> None:
    """Let time pass at once for the schedules and alarms of the account that the AWS variables name."""
    missing = [name for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID") if not os.environ.get(name)]
    if missing:
        raise ConfigurationError(f"{' and '.join(missing)} not set: take the variables that the local AWS gives.")
    now = advance(os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_ACCESS_KEY_ID"], seconds)
    sys.stdout.write(f"It is {now:%Y-%m-%d %H:%M:%S} UTC in the account.\n")


if __name__ == "__main__":
    try:
        typer.run(main)
    except FedgrassError as failed:
        sys.exit(str(failed))
