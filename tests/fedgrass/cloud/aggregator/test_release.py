from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from fedgrass.bundle import MANIFEST, Bundle
from fedgrass.cloud.aggregator.candidate import Candidate
from fedgrass.cloud.aggregator.component import Account, create_component
from fedgrass.cloud.aggregator.recipe import global_model_recipe
from fedgrass.cloud.aggregator.release import publish_model
from fedgrass.errors import BundleError, ConfigurationError, ReleaseError
from fedgrass.inference import write_bundle
from fedgrass.protocol.fleet_score import fleet_score
from fedgrass.protocol.names import GLOBAL_MODEL, model_prefix
from fedgrass.protocol.report import Evaluation
from fedgrass.protocol.tables import load_state
from tests.fedgrass.cloud.aggregator.conftest import FLEET, GROUP_ARN, Fleet, trained
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fixtures.doubles import double
from tests.fixtures.gdk import gdk_schema

EVALUATED = {"loss": 0.1, "rmse": 0.3, "error_threshold": 0.27}
ACCOUNT = Account.of(GROUP_ARN)


def recipe_of(bundle: Bundle) -> dict[str, Any]:
    uris = {name: f"s3://bucket/{name}" for name in (*bundle.manifest.files, MANIFEST)}
    recipe: dict[str, Any] = json.loads(global_model_recipe(FLEET, bundle.manifest, uris))
    return recipe


def lowered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.lower(): lowered(below) for key, below in value.items()}
    return [lowered(below) for below in value] if isinstance(value, list) else value


def test_the_recipe_is_valid_by_the_gdks_schema(digits: Bundle) -> None:
    recipe = lowered(recipe_of(digits))
    schema = gdk_schema("recipe")
    jsonschema.Draft7Validator(schema).validate(recipe)
    with pytest.raises(jsonschema.ValidationError):  # the schema does look
        jsonschema.Draft7Validator(schema).validate({**recipe, "componentname": "a b"})


def test_the_recipe_keeps_both_nuclei_limits(digits: Bundle) -> None:
    recipe = recipe_of(digits)
    assert len(json.dumps(recipe)) < 16_000
    (manifest,) = recipe["Manifests"]
    assert manifest["Platform"] == {"os": "linux", "runtime": "*"}
    assert list(manifest["Lifecycle"]) == ["install", "run"]
    assert manifest["Lifecycle"]["run"] == "exit 0"
    script = manifest["Lifecycle"]["install"]["Script"]
    variables = re.findall(r"\{[^}]*\}", script)
    assert set(variables) == {"{kernel:rootPath}", "{artifacts:path}"}
    assert script.count("{") == script.count("}") == len(variables)
    assert "-m fedgrass.edge.admit --artifacts {artifacts:path} --store" in script
    assert len(json.dumps(recipe["ComponentConfiguration"])) < 2_700


def test_the_recipe_names_every_file_of_the_bundle_readable_by_all(digits: Bundle) -> None:
    artifacts = recipe_of(digits)["Manifests"][0]["Artifacts"]
    assert {a["Uri"] for a in artifacts} == {f"s3://bucket/{n}" for n in (*digits.manifest.files, MANIFEST)}
    assert all(a["Permission"] == {"Read": "ALL"} for a in artifacts)


def test_the_operators_first_model_is_uploaded_made_a_component_and_current(fleet: Fleet, digits: Bundle) -> None:
    released = publish_model(digits, fleet.clients)
    assert released.deployment_id is None
    assert released.component_arn.endswith(f":{GLOBAL_MODEL}:versions:1.0.0")
    assert fleet.keys(model_prefix(FLEET, "1.0.0")) == {
        model_prefix(FLEET, "1.0.0") + n for n in (*digits.manifest.files, MANIFEST)
    }
    assert load_state(fleet.clients.rounds, FLEET).model == released.base
    assert fleet.greengrass.deployments == []


def test_the_fleets_threshold_travels_with_the_version(fleet: Fleet, digits: Bundle, tmp_path: Path) -> None:
    """Beside an anomaly detector's files, as an artifact of the component; the first one stays."""
    detector = digits.manifest.model_copy(update={"anomaly_quantile": 0.99, "version": "3.0.0"})
    made = write_bundle(Bundle(digits.folder, detector), digits.parameters(), tmp_path / "made", version="3.0.0")
    key = model_prefix(FLEET, "3.0.0") + "score.json"
    for threshold in (0.25, 0.26):  # the job that is run again has heard one device more
        content = fleet_score(0.99, {"error_threshold": threshold})
        assert content is not None
        (made.folder / "score.json").write_bytes(content)
        arn = publish_model(made, fleet.clients).component_arn
        found = fleet.clients.bucket.read(key, max_bytes=1000)
        assert found is not None
        assert json.loads(found)["threshold"] == 0.25
    recipe = json.loads(fleet.greengrass.get_component(arn=arn, recipeOutputFormat="JSON")["recipe"])
    artifacts = [one["Uri"] for one in recipe["Manifests"][0]["Artifacts"]]
    assert fleet.clients.bucket.uri(key) in artifacts
    # A round's job puts it there once the model was evaluated.
    report = SimpleNamespace(evaluation=Evaluation.of(EVALUATED, 10))
    Candidate._note_threshold(double(SimpleNamespace(report=report)), made)
    assert json.loads((made.folder / "score.json").read_bytes())["threshold"] == EVALUATED["error_threshold"]
    # Of another model the same file is none of its own.
    plain = write_bundle(digits, digits.parameters(), tmp_path / "plain", version="4.0.0")
    (plain.folder / "score.json").write_bytes(b"{}")
    publish_model(plain, fleet.clients)
    assert fleet.clients.bucket.size(model_prefix(FLEET, "4.0.0") + "score.json") is None


def test_publishing_again_changes_nothing(fleet: Fleet, digits: Bundle) -> None:
    fleet.greengrass.deploy(
        {"targetArn": GROUP_ARN, "components": {"com.fedgrass.Suite": {"componentVersion": "1.0.0"}}}
    )
    first = publish_model(digits, fleet.clients)
    assert publish_model(digits, fleet.clients) == first
    assert len(fleet.greengrass.deployments) == 2
    assert first.deployment_id == fleet.greengrass.latest["deploymentId"]


def test_another_model_under_a_published_version_is_refused(fleet: Fleet, digits: Bundle, tmp_path: Path) -> None:
    publish_model(digits, fleet.clients)
    other = write_bundle(digits, trained(digits.parameters(), 1), tmp_path / "other", version="1.0.0")
    with pytest.raises(ReleaseError, match="never overwritten"):
        publish_model(other, fleet.clients)


def test_an_altered_bundle_is_not_published(fleet: Fleet, digits: Bundle, tmp_path: Path) -> None:
    bundle = write_bundle(digits, digits.parameters(), tmp_path / "b", version="1.5.0")
    bundle.path("inference.tflite").write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"inference\.tflite"):
        publish_model(bundle, fleet.clients)
    assert not fleet.keys(model_prefix(FLEET, "1.5.0"))


def test_a_version_is_waited_for_until_it_is_deployable(digits: Bundle) -> None:
    greengrass = FakeGreengrass()
    greengrass.polls_until_deployable = 4
    recipe = json.dumps(recipe_of(digits)).encode()
    arn = create_component(double(greengrass), ACCOUNT, recipe)
    assert greengrass.components[arn]["polls"] < 0


def test_a_version_that_fails_says_why(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    greengrass = FakeGreengrass()
    recipe = json.dumps(recipe_of(digits)).encode()
    arn = create_component(double(greengrass), ACCOUNT, recipe)
    greengrass.components[arn]["state"] = "FAILED"
    with pytest.raises(ReleaseError, match="because"):
        create_component(double(greengrass), ACCOUNT, recipe)


def test_a_version_that_never_gets_ready_is_an_error(digits: Bundle) -> None:
    greengrass = FakeGreengrass()
    greengrass.polls_until_deployable = 10**9
    with pytest.raises(ReleaseError, match="run again"):
        create_component(double(greengrass), ACCOUNT, json.dumps(recipe_of(digits)).encode(), timeout=0.2)


def test_a_version_with_other_artifacts_is_a_conflict(digits: Bundle) -> None:
    greengrass = FakeGreengrass()
    create_component(double(greengrass), ACCOUNT, json.dumps(recipe_of(digits)).encode())
    other = json.dumps(recipe_of(digits)).replace("s3://bucket/", "s3://another/").encode()
    with pytest.raises(ReleaseError, match="other artifacts"):
        create_component(double(greengrass), ACCOUNT, other)


def test_only_an_arn_says_where_components_live() -> None:
    assert Account.of("arn:aws-cn:iot:cn-north-1:123456789012:thinggroup/x").component_arn("c", "1.0.0") == (
        "arn:aws-cn:greengrass:cn-north-1:123456789012:components:c:versions:1.0.0"
    )
    with pytest.raises(ConfigurationError, match="thing group"):
        Account.of("mill")
