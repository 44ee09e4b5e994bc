"""Component versions of Greengrass v2, as boto3 and the GDK meet them."""

import base64
import hashlib
import json
from typing import Any

import pytest

from fedgrass.local.aws.client import LocalAwsProcess
from tests.fixtures.greengrass import Greengrass, recipe


def test_a_version_becomes_deployable_with_the_digests_of_its_artifacts(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    s3 = local_aws.client("s3")
    s3.create_bucket(Bucket=unique)
    s3.put_object(Bucket=unique, Key="a.zip", Body=b"content")
    manifest = {"Platform": {"os": "linux"}, "Artifacts": [{"Uri": f"s3://{unique}/a.zip", "Unarchive": "ZIP"}]}
    created = greengrass.client.create_component_version(inlineRecipe=recipe(unique, Manifests=[manifest]))
    assert created["status"]["componentState"] == "REQUESTED"
    assert greengrass.settled(created["arn"])["componentState"] == "DEPLOYABLE"
    stored = json.loads(greengrass.client.get_component(arn=created["arn"], recipeOutputFormat="JSON")["recipe"])
    [artifact] = stored["Manifests"][0]["Artifacts"]
    assert artifact["Algorithm"] == "SHA-256"
    assert base64.b64decode(artifact["Digest"]) == hashlib.sha256(b"content").digest()
    assert artifact["Unarchive"] == "ZIP"


def test_a_version_whose_artifact_is_missing_fails_and_names_it(greengrass: Greengrass, unique: str) -> None:
    uri = f"s3://{unique}/missing.zip"
    created = greengrass.client.create_component_version(
        inlineRecipe=recipe(unique, Manifests=[{"Artifacts": [{"Uri": uri}]}])
    )
    status = greengrass.settled(created["arn"])
    assert status["componentState"] == "FAILED"
    assert "cannot be read" in status["errors"][uri]


def test_a_recipe_in_yaml_is_taken_and_given_back_in_either_format(greengrass: Greengrass, unique: str) -> None:
    text = f"""
RecipeFormatVersion: 2020-01-25
ComponentName: {unique}
ComponentVersion: 1.0.0
ComponentDescription: in YAML
Manifests:
  - Lifecycle: {{run: sleep 1}}
"""
    arn = greengrass.client.create_component_version(inlineRecipe=text.encode())["arn"]
    assert (
        b"ComponentDescription: in YAML"
        in greengrass.client.get_component(arn=arn, recipeOutputFormat="YAML")["recipe"]
    )
    as_json = json.loads(greengrass.client.get_component(arn=arn, recipeOutputFormat="JSON")["recipe"])
    assert as_json["RecipeFormatVersion"] == "2020-01-25"
    assert as_json["Manifests"][0]["Lifecycle"] == {"run": "sleep 1"}


def test_a_version_that_exists_is_a_conflict(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique)
    with pytest.raises(greengrass.exceptions.ConflictException, match="already exists") as caught:
        greengrass.client.create_component_version(inlineRecipe=recipe(unique))
    assert caught.value.response["resourceType"] == "component version"


def test_the_same_request_twice_is_one_version(greengrass: Greengrass, unique: str) -> None:
    first = greengrass.client.create_component_version(inlineRecipe=recipe(unique), clientToken=unique)
    again = greengrass.client.create_component_version(inlineRecipe=recipe(unique), clientToken=unique)
    assert first["arn"] == again["arn"]


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (recipe("bad name"), "ComponentName"),
        (recipe("x", "1.0"), "ComponentVersion"),
        (recipe("x", RecipeFormatVersion="2019-01-01"), "RecipeFormatVersion"),
        (recipe("x", Manifests=[]), "Manifests"),
        (recipe("x", ComponentDependencies={"y": {"VersionRequirement": "newest"}}), "ComponentDependencies"),
        (b"just text", "map of keys"),
        (b"{", "neither JSON nor YAML"),
        (recipe("x", ComponentDescription="d" * 16_000), "16000"),
    ],
)
def test_a_recipe_that_is_not_valid_is_refused_with_the_field(greengrass: Greengrass, data: bytes, field: str) -> None:
    with pytest.raises(greengrass.exceptions.ValidationException, match=field):
        greengrass.client.create_component_version(inlineRecipe=data)


def test_versions_are_listed_newest_first_page_by_page(greengrass: Greengrass, unique: str) -> None:
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        arn = greengrass.component(unique, version)
    pages = greengrass.client.get_paginator("list_component_versions").paginate(
        arn=arn.rsplit(":", 2)[0], PaginationConfig={"PageSize": 2}
    )
    assert [one["componentVersion"] for page in pages for one in page["componentVersions"]] == [
        "1.10.0",
        "1.9.0",
        "1.0.0",
    ]
    [mine] = [one for one in greengrass.client.list_components()["components"] if one["componentName"] == unique]
    assert mine["latestVersion"]["componentVersion"] == "1.10.0"


def test_a_component_that_was_never_created_has_no_versions(greengrass: Greengrass, unique: str) -> None:
    arn = f"arn:aws:greengrass:us-east-1:123456789012:components:{unique}"
    assert greengrass.client.list_component_versions(arn=arn)["componentVersions"] == []
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException):
        greengrass.client.describe_component(arn=f"{arn}:versions:1.0.0")


def test_a_deleted_version_is_gone(greengrass: Greengrass, unique: str) -> None:
    arn = greengrass.component(unique)
    greengrass.client.delete_component(arn=arn)
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException):
        greengrass.client.get_component(arn=arn)


def resolve(greengrass: Greengrass, name: str, **requirements: str) -> list[dict[str, Any]]:
    resolved: list[dict[str, Any]] = greengrass.client.resolve_component_candidates(
        platform={"attributes": {"os": "linux", "architecture": "x86_64", "runtime": "*"}},
        componentCandidates=[{"componentName": name, "versionRequirements": requirements}],
    )["resolvedComponentVersions"]
    return resolved


def test_the_newest_version_that_all_requirements_allow_is_resolved(greengrass: Greengrass, unique: str) -> None:
    for version in ("1.0.0", "1.4.0", "1.5.0", "2.0.0"):
        greengrass.component(unique, version)
    [found] = resolve(greengrass, unique, group="^1.0.0", other="<1.5.0")
    assert found["componentVersion"] == "1.4.0"
    assert json.loads(found["recipe"])["ComponentVersion"] == "1.4.0"
    [pinned] = resolve(greengrass, unique, group="1.0.0")
    assert pinned["componentVersion"] == "1.0.0"


def test_requirements_that_cannot_be_met_are_named(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique, "1.0.0")
    with pytest.raises(greengrass.exceptions.ResourceNotFoundException, match=r"group requires \^2.0.0.*1\.0\.0"):
        resolve(greengrass, unique, group="^2.0.0")


def test_a_version_for_another_platform_is_not_resolved(greengrass: Greengrass, unique: str) -> None:
    greengrass.component(unique, "1.0.0", Manifests=[{"Platform": {"os": "linux", "architecture": "/x86_64|amd64/"}}])
    greengrass.component(unique, "1.1.0", Manifests=[{"Platform": {"os": "windows"}}])
    assert [one["componentVersion"] for one in resolve(greengrass, unique)] == ["1.0.0"]


def test_an_artifact_can_be_had_by_its_presigned_url(
    greengrass: Greengrass, local_aws: LocalAwsProcess, unique: str
) -> None:
    from urllib.request import urlopen

    s3 = local_aws.client("s3")
    s3.create_bucket(Bucket=unique)
    s3.put_object(Bucket=unique, Key="folder/a.zip", Body=b"content")
    arn = greengrass.component(unique, Manifests=[{"Artifacts": [{"Uri": f"s3://{unique}/folder/a.zip"}]}])
    url = greengrass.client.get_component_version_artifact(arn=arn, artifactName="a.zip")["preSignedUrl"]
    with urlopen(url) as response:
        assert response.read() == b"content"


def test_an_operation_that_is_not_here_says_so(greengrass: Greengrass) -> None:
    with pytest.raises(greengrass.exceptions.ClientError, match="local AWS has no GET /greengrass/servicerole"):
        greengrass.client.get_service_role_for_account()


def test_the_calls_that_the_gdk_makes_to_publish_work(local_aws: LocalAwsProcess, unique: str) -> None:
    """In the order of GDK 1.6.2's ``component publish``."""
    sts, s3, greengrass = (local_aws.client(name) for name in ("sts", "s3", "greengrassv2"))
    account = sts.get_caller_identity()["Account"]
    arn = f"arn:aws:greengrass:us-east-1:{account}:components:{unique}"
    assert greengrass.list_component_versions(arn=arn)["componentVersions"] == []
    bucket = f"{unique}-us-east-1-{account}"
    with pytest.raises(s3.exceptions.ClientError) as caught:
        s3.get_bucket_location(Bucket=bucket)
    assert caught.value.response["Error"]["Code"] == "NoSuchBucket"
    s3.create_bucket(Bucket=bucket)
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    s3.put_object(Bucket=bucket, Key=f"{unique}/1.0.0/a.zip", Body=b"zip")
    manifest = {"Artifacts": [{"Uri": f"s3://{bucket}/{unique}/1.0.0/a.zip"}]}
    created = greengrass.create_component_version(inlineRecipe=recipe(unique, Manifests=[manifest]))
    assert created["arn"] == f"{arn}:versions:1.0.0"
    assert [one["componentVersion"] for one in greengrass.list_component_versions(arn=arn)["componentVersions"]] == [
        "1.0.0"
    ]
