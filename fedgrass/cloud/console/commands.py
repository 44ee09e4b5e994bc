"""``fedgrass console``: the web console, served from this machine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fedgrass.account import DEFAULT_FLEET, Account
from fedgrass.cli.account import FleetOption
from fedgrass.errors import ConfigurationError

# A person waits: two tries of a few seconds, and then the page that says what is wrong.
_CONNECT_SECONDS, _READ_SECONDS, _ATTEMPTS = 3, 20, 2
_THREADS = 8


def console(
    fleet: FleetOption = DEFAULT_FLEET,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            envvar="AWS_ENDPOINT_URL",
            help="Address of the AWS API, if not AWS's own; the local stand-in prints one.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but a loopback address needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8321,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Another name under which browsers reach it, such as a proxy's; may be repeated."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="FEDGRASS_CONSOLE_TOKEN",
            help="Token to ask every browser for, at least 16 characters. Prefer the variable: other users can see options.",
        ),
    ] = None,
) -> None:
    """View and control the fleet, its rounds and its models in a browser.

    It acts with the AWS credentials of its environment, and stops with Ctrl-C.
    """
    try:
        import flask  # noqa: F401 - only whether it is there
        import waitress.server
    except ImportError as error:
        raise ConfigurationError(f"the web console needs {error.name}: pip install 'fedgrass[console]'") from error
    from botocore.config import Config

    from fedgrass.cloud.console.app import create_app, prepare
    from fedgrass.cloud.console.security import Access

    if endpoint_url is not None:
        os.environ["AWS_ENDPOINT_URL"] = endpoint_url
    access = Access.of(host, name or (), token)
    patience = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "max_attempts": _ATTEMPTS},
        max_pool_connections=2 * _THREADS,
    )
    app = create_app(Account.of(fleet, patience), access)
    prepare(app)
    # Bound before the address is shown: port 0 is known only then.
    try:
        server = waitress.server.create_server(app, host=host, port=port, threads=_THREADS, ident=None)
    except OSError as error:
        raise ConfigurationError(
            f"{host}:{port}: {error.strerror}; choose another --port, or 0 for a free one"
        ) from error
    # A browser sends a host's cookies to all of its ports, so that two consoles must not share a name.
    app.config["SESSION_COOKIE_NAME"] = f"fedgrass-console-{server.effective_port}"
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"The console of fleet {fleet} is at http://{shown}:{server.effective_port}/ until Ctrl-C")
    server.run()
