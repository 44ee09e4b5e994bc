"""Run Stream Manager: ``python -m fedgrass.local.core_device.stream_manager``, which the core device does by itself."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import boto3
import typer
from botocore.config import Config

from fedgrass.local.core_device.stream_manager.server import StreamManagerServer
from fedgrass.local.core_device.stream_manager.store import StreamStore
from fedgrass.logs import configure, log_event

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CREDENTIALS_URI = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
_TOKEN_CHECK_SECONDS = 10.0
_creating = threading.Lock()


def main(
    directory: Annotated[Path, typer.Option(help="Folder of the streams.")],
    port: Annotated[int, typer.Option(help="TCP port on loopback; 0 for a free one.")] = 8088,
) -> None:
    """Serve message streams until SIGTERM; S3 and its credentials come from the usual AWS variables."""
    configure(thing=os.environ.get("AWS_IOT_THING_NAME", ""))
    asyncio.run(_serve(directory, port))


async def _serve(directory: Path, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    store = StreamStore(directory, s3_client)
    store.open()
    server = StreamManagerServer(store, _known_to_the_device)
    log_event("stream_manager_started", port=await server.start(port), streams=store.names())
    warming = asyncio.get_running_loop().run_in_executor(None, s3_client)  # so that the first upload need not wait
    await stopping.wait()
    await server.stop()
    await store.close()
    await warming


def s3_client() -> S3Client:
    """Return the S3 client of this process, which makes no retries: the exporter has its own."""
    with _creating:  # boto3's default session is not thread-safe
        return _s3_client()


@functools.cache
def _s3_client() -> S3Client:
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=60, s3={"addressing_style": "path"}
    )
    return boto3.client("s3", config=config)


async def _known_to_the_device(token: str) -> bool:
    """Tell whether ``token`` is a component's: the token exchange service refuses all others."""
    uri = os.environ.get(_CREDENTIALS_URI)
    return uri is None or await asyncio.to_thread(_accepted, uri, token)


def _accepted(uri: str, token: str) -> bool:
    request = urllib.request.Request(uri, headers={"Authorization": token})  # noqa: S310 - the device's own address
    # Past any proxy: the token must not leave the machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TOKEN_CHECK_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 403  # without credentials so far, but the token was recognised
    except OSError:
        return False


if __name__ == "__main__":
    typer.run(main)
