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
    }
)
_CLASSIC_PHASES = frozenset({"install", "startup", "run", "shutdown", "recover"})


@dataclass(frozen=True)
class Nucleus:
    """One kind of nucleus. Sizes are in bytes; ``None`` is no limit."""

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
    restarts_on_configuration: bool = False
    # IPC
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


CLASSIC = Nucleus("aws.greengrass.Nucleus", "2.16.0", "aws_nucleus_classic")

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
    restarts_on_configuration=True,
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
