"""The two nuclei, as the limits by which they differ: what the device imitates of nucleus lite, and no more.

Nucleus lite's limits were found by trial with version 2.6 and awsiotsdk 1.31.
"""

from __future__ import annotations

from dataclasses import dataclass

_LITE_LACKS = frozenset(
    {
        "SubscribeToComponentUpdates",
        "DeferComponentUpdate",
        "ListComponents",
        "GetComponentDetails",
        "StopComponent",
    }
)
_CLASSIC_PHASES = frozenset({"install", "startup", "run", "shutdown", "recover"})


@dataclass(frozen=True)
class Nucleus:
    """One kind of nucleus. Sizes are in bytes, times in seconds; ``None`` is no limit.

    ``restarts_on_configuration``: a component whose entry in the deployment has a ``configurationUpdate`` is installed and
    started again, whatever the update changes. ``installs_first``: everything is installed before anything is replaced.
    ``needs_something_to_run``: a component without ``run`` and ``startup`` never gets beyond INSTALLED. ``patience``: how long
    a deployment waits for a component. ``answers_void_tokens``: a connection with one is refused, not just closed.
    ``keeps_failed_credentials``: how long the token exchange service goes on refusing after it had no connection.
    ``looks_for_deployments``: how often it looks whether one has come. ``subscribes_again``: after how long it tries to
    subscribe to its jobs again, when there was no link at its start. ``credentials_come_late``: the token exchange service is up
    after what does not depend on it HARD. ``names_renew_tokens``: a component that connects by its
    name gets a token.
    """

    name: str
    version: str
    runtime: str
    # Recipes
    phases: frozenset[str] = _CLASSIC_PHASES
    keys_in_any_case: bool = True
    requires_runtime: bool = False
    yaml_is_strings: bool = False
    cross_component_variables: bool = True
    truncates_scripts: bool = False
    requires_artifacts: bool = False
    # Deployments and lifecycle
    restarts_on_configuration: bool = False
    installs_first: bool = False
    rolls_back: bool = True
    installs_at_boot: bool = True
    needs_something_to_run: bool = False
    starts_an_hour: int | None = None
    patience: float | None = None
    jobs_name_a_configuration: bool = False
    keeps_failed_credentials: float = 0.0
    looks_for_deployments: float = 0.0
    subscribes_again: float = 0.0
    credentials_come_late: bool = False
    # IPC
    answers_void_tokens: bool = True
    names_renew_tokens: bool = False
    unsupported: frozenset[str] = frozenset()
    error_texts: bool = True
    honours_receive_mode: bool = True
    max_request: int | None = None
    max_list_items: int | None = None
    max_leaf: int | None = None
    max_access_control: int | None = None
    # AWS IoT Core
    spools: bool = True
    retains: bool = True
    max_unacknowledged: int | None = None
    max_delivery: int | None = None


# The real one keeps a failed connection for 300 s, looks for deployments every 15 s and subscribes again after 120 s: here a
# hundredth of that.
CLASSIC = Nucleus(
    "aws.greengrass.Nucleus",
    "2.16.0",
    "aws_nucleus_classic",
    keeps_failed_credentials=3.0,
    looks_for_deployments=0.15,
    subscribes_again=1.2,
    credentials_come_late=True,
)

LITE = Nucleus(
    "aws.greengrass.NucleusLite",
    "2.6.0",
    "aws_nucleus_lite",
    phases=frozenset({"install", "startup", "run"}),
    keys_in_any_case=False,
    requires_runtime=True,
    yaml_is_strings=True,
    cross_component_variables=False,
    truncates_scripts=True,
    requires_artifacts=True,
    restarts_on_configuration=True,
    installs_first=True,
    rolls_back=False,
    installs_at_boot=False,
    needs_something_to_run=True,
    starts_an_hour=3,
    patience=300.0,
    jobs_name_a_configuration=True,
    answers_void_tokens=False,
    names_renew_tokens=True,
    unsupported=_LITE_LACKS,
    error_texts=False,
    honours_receive_mode=False,
    max_request=9_800,  # a binary message of some 7,200 bytes, once it is base64 in JSON
    max_list_items=44,
    max_leaf=1024,
    max_access_control=2_700,
    spools=False,
    retains=False,
    max_unacknowledged=10,
    max_delivery=4_900,
)
