"""The environment that a component's scripts see: the nucleus's variables, and little of the device's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgrass.local.core_device.scripts import ROOT_MARK

# A venv is built by pip in install scripts, behind whatever proxy, mirror and certificates this machine has.
_PASSED = {
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
}
_PASSED_PREFIXES = ("PIP_",)
_PASSED_SUFFIXES = ("_proxy", "_PROXY")


@dataclass(frozen=True)
class Environment:
    """What all components of the device have in common."""

    inherited: Mapping[str, str]
    nucleus_version: str
    thing: str
    region: str
    endpoint_url: str
    socket: Path
    root: Path

    def of(self, token: str) -> dict[str, str]:
        """Return the environment of the component whose IPC and credentials token is ``token``."""
        passed = {name: value for name, value in self.inherited.items() if _is_passed(name)}
        return {
            **passed,
            # Both names, for IPC reads the one and the credentials' client the other.
            "SVCUID": token,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(self.socket),
            "AWS_IOT_THING_NAME": self.thing,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "GGC_VERSION": self.nucleus_version,
            ROOT_MARK: str(self.root),
        }


def _is_passed(name: str) -> bool:
    return name in _PASSED or name.startswith(_PASSED_PREFIXES) or name.endswith(_PASSED_SUFFIXES)
