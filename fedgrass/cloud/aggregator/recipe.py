"""The recipe of ``com.fedgrass.GlobalModel``: a model bundle as a component, admitted by each device for itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from fedgrass.bundle import MANIFEST, Manifest
from fedgrass.protocol.names import GLOBAL_MODEL, MODEL_ADMISSION_TOPIC, MODEL_DEPLOYER, RUNTIME, SCORE

# A model outlives many releases of the code, so nothing but the command line below binds the two: no upper bound.
_ANY_RELEASE = ">=1.0.0"

# Any other brace would be taken for a recipe variable, and cut the script short on nucleus lite. No dependency is waited for
# before `install`: on a device's first deployment the venv is being made at the same time.
_PYTHON = "{kernel:rootPath}/work/" + RUNTIME + "/venv/bin/python"
_ADMIT = (
    f"until [ -x {_PYTHON} ]; do sleep 1; done; "
    f"exec {_PYTHON} -m fedgrass.edge.admit "
    "--artifacts {artifacts:path} --store {kernel:rootPath}/work/" + MODEL_DEPLOYER
)
_ADMIT_SECONDS = 2400  # the venv's own bound, 1800, and time to judge a large model


def global_model_recipe(
    fleet: str,
    manifest: Manifest,
    uris: Mapping[str, str],
    *,
    component: str = GLOBAL_MODEL,
    refusal: Literal["keep", "fail"] = "keep",
) -> bytes:
    """Return the recipe as JSON; the same model gives the same bytes.

    Parameters
    ----------
    fleet
        For the description only.
    manifest
        The sealed bundle's: its version is the component's, its files are the artifacts.
    uris
        Address of each file, ``model.json`` included, and of the fleet's ``score.json`` if the version has one.
    component
        The component's name, where the account has several fleets.
    refusal
        Whether a device's deployment keeps what it has and succeeds, or fails, when it refuses the model.
    """
    admit = _ADMIT if refusal == "keep" else f"{_ADMIT} --refusal {refusal}"
    recipe: dict[str, Any] = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": component,
        "ComponentVersion": manifest.version,
        "ComponentDescription": f"Model {manifest.name} of fleet {fleet}, parameters {manifest.parameters_sha256[:12]}.",
        "ComponentPublisher": "fedgrass",
        "ComponentConfiguration": {
            "DefaultConfiguration": {
                "accessControl": {
                    "aws.greengrass.ipc.pubsub": {
                        f"{component}:pubsub:1": {
                            "policyDescription": "Tells ModelDeployer what became of this model.",
                            "operations": ["aws.greengrass#PublishToTopic"],
                            "resources": [MODEL_ADMISSION_TOPIC],
                        }
                    }
                }
            }
        },
        "ComponentDependencies": {
            # SOFT: on nucleus lite HARD means a systemd unit that runs, and a component that only installs has none.
            RUNTIME: {"VersionRequirement": _ANY_RELEASE, "DependencyType": "SOFT"},
            MODEL_DEPLOYER: {"VersionRequirement": _ANY_RELEASE, "DependencyType": "SOFT"},
        },
        "Manifests": [
            {
                "Platform": {"os": "linux", "runtime": "*"},
                "Lifecycle": {
                    "install": {"Timeout": _ADMIT_SECONDS, "Script": admit},
                    # Nucleus lite waits 300 s for a component that has nothing to run, and fails the deployment.
                    "run": "exit 0",
                },
                # Read by all users of the device: the application may run as another than the component's.
                "Artifacts": [
                    {"Uri": uris[name], "Permission": {"Read": "ALL"}}
                    for name in (*sorted(manifest.files), MANIFEST, SCORE)
                    if name != SCORE or SCORE in uris
                ],
            }
        ],
    }
    # JSON: nucleus lite turns every value of a YAML recipe into a string.
    return json.dumps(recipe, indent=1).encode()
