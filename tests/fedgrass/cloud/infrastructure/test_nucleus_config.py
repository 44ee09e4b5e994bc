"""``config.yaml`` holds what the nuclei's own code reads, by the names that stand there, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from fedgrass.cloud.infrastructure.provision import Endpoints, nucleus_config

SYSTEM = {"certificateFilePath", "privateKeyPath", "rootCaPath", "thingName"}
CLASSIC = {
    # DeviceConfiguration.java of nucleus 2.18; "system.rootpath" is KernelCommandLine's, "componentType" Kernel's.
    "system": SYSTEM | {"rootpath"},
    "component": {"componentType", "configuration"},
    "configuration": {
        *(
            "awsRegion",
            "componentStoreMaxSizeBytes",
            "credentialEndpointTimeoutMs",
            "deploymentConfigurationTimeSource",
        ),
        *("deploymentPollingFrequencySeconds", "envStage", "fipsMode", "fleetStatus", "greengrassDataPlaneEndpoint"),
        *("greengrassDataPlanePort", "interpolateComponentConfiguration", "iotCredEndpoint", "iotDataEndpoint"),
        *("iotRoleAlias", "jvmOptions", "logging", "mqtt", "networkProxy", "platformOverride", "runWithDefault"),
        *("s3EndpointType", "telemetry"),
    },
}
LITE = {
    # gg_config reads of iotcored, ggdeploymentd, tesd and gg-fleet-statusd, nucleus lite 2.6.
    "system": SYSTEM | {"rootPath"},
    "component": {"componentType", "configuration"},
    "configuration": {
        *("awsRegion", "fleetStatus", "greengrassDataPlanePort", "iotCredEndpoint", "iotDataEndpoint", "iotRoleAlias"),
        *("networkProxy", "platformOverride", "runWithDefault"),
    },
}
NEEDED = {"awsRegion", "iotCredEndpoint", "iotDataEndpoint", "iotRoleAlias"}


@pytest.mark.parametrize(
    ("lite", "name", "read"), [(False, "aws.greengrass.Nucleus", CLASSIC), (True, "aws.greengrass.NucleusLite", LITE)]
)
def test_every_key_is_one_that_the_nucleus_reads(lite: bool, name: str, read: dict[str, set[str]]) -> None:
    endpoints = Endpoints(
        data="x-ats.iot.eu-west-1.amazonaws.com", credentials="x.credentials.iot.eu-west-1.amazonaws.com"
    )
    written: dict[str, Any] = yaml.safe_load(nucleus_config("press-1", "eu-west-1", "alias", endpoints, lite=lite))
    assert written.keys() == {"system", "services"}
    assert written["services"].keys() == {name}
    component = written["services"][name]
    assert written["system"].keys() == read["system"]
    assert component.keys() <= read["component"]
    assert NEEDED <= component["configuration"].keys() <= read["configuration"]
