from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.fraud.model import write_first_bundle
from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
from fedgrass.cloud.aggregator.release import trust_builder
from fedgrass.cloud.ending.deployment import SupersededError, configure, deploy_version
from fedgrass.errors import ConfigurationError, ReleaseError
from fedgrass.protocol.names import GLOBAL_MODEL, RUNTIME
from tests.fedgrass.cloud.aggregator.greengrass import FakeGreengrass
from tests.fixtures.doubles import double
from tests.fixtures.places import ROOT

TARGET = "arn:aws:iot:us-east-1:123456789012:thinggroup/mill"
SUITE = {"com.fedgrass.Suite": {"componentVersion": "1.0.0"}}
FULL: dict[str, Any] = {
    "targetArn": TARGET,
    "deploymentName": "mill production",
    "components": {
        "com.fedgrass.Suite": {"componentVersion": "1.0.0"},
        "com.acme.Vision": {
            "componentVersion": "4.2.0",
            "configurationUpdate": {"merge": '{"fps": 5}', "reset": ["/roi"]},
            "runWith": {"posixUser": "acme", "systemResourceLimits": {"memory": 100_000, "cpus": 0.5}},
        },
        GLOBAL_MODEL: {"componentVersion": "1.1.0", "configurationUpdate": {"merge": '{"tolerance": 0.1}'}},
    },
    "deploymentPolicies": {
        "failureHandlingPolicy": "ROLLBACK",
        "componentUpdatePolicy": {"timeoutInSeconds": 600, "action": "NOTIFY_COMPONENTS"},
    },
    "iotJobConfiguration": {
        "abortConfig": {
            "criteriaList": [
                {"failureType": "FAILED", "action": "CANCEL", "thresholdPercentage": 20, "minNumberOfExecutedThings": 5}
            ]
        },
        "timeoutConfig": {"inProgressTimeoutInMinutes": 60},
    },
    "parentTargetArn": "arn:aws:iot:us-east-1:123456789012:thinggroup/plant",
    "tags": {"team": "mill"},
}


def deploy(greengrass: FakeGreengrass, version: str = "1.2.0", **more: Any) -> str | None:
    return deploy_version(double(greengrass), TARGET, GLOBAL_MODEL, version, pause=lambda seconds: None, **more)


def versions(greengrass: FakeGreengrass) -> dict[str, str]:
    return {name: entry["componentVersion"] for name, entry in greengrass.latest["components"].items()}


def test_only_the_models_version_changes_everything_else_is_kept() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy(FULL)
    made = deploy(greengrass)
    expected = {**FULL, "components": {**FULL["components"]}}
    expected["components"][GLOBAL_MODEL] = {**FULL["components"][GLOBAL_MODEL], "componentVersion": "1.2.0"}
    latest = dict(greengrass.latest)
    del latest["creationTimestamp"]
    assert latest.pop("deploymentId") == made
    assert latest == expected


def test_another_targets_deployments_are_none_of_our_business() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy(FULL)
    greengrass.deploy({"targetArn": TARGET + "2", "components": {"com.acme.Other": {"componentVersion": "1.0.0"}}})
    deploy(greengrass)
    assert versions(greengrass) == {"com.fedgrass.Suite": "1.0.0", "com.acme.Vision": "4.2.0", GLOBAL_MODEL: "1.2.0"}


def test_deploying_again_changes_nothing_and_returns_the_same_deployment() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy(FULL)
    made = deploy(greengrass)
    assert deploy(greengrass) == made
    assert len(greengrass.deployments) == 2


def test_a_target_without_a_deployment_gets_its_first_only_if_asked_for() -> None:
    greengrass = FakeGreengrass()
    assert deploy(greengrass, create=False) is None
    assert greengrass.deployments == []
    assert deploy(greengrass) == "d0"
    assert versions(greengrass) == {GLOBAL_MODEL: "1.2.0"}


def once(action: Callable[[], object]) -> Callable[[], None]:
    left = [action]

    def run() -> None:
        if left:
            left.pop()()

    return run


def test_a_change_that_came_between_our_reading_and_writing_is_merged() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": SUITE})
    theirs = {**SUITE, "com.acme.New": {"componentVersion": "1.0.0"}}
    greengrass.before_create = once(lambda: greengrass.deploy({"targetArn": TARGET, "components": theirs}))
    made = deploy(greengrass)
    assert versions(greengrass) == {"com.fedgrass.Suite": "1.0.0", "com.acme.New": "1.0.0", GLOBAL_MODEL: "1.2.0"}
    assert greengrass.latest["deploymentId"] == made


def test_a_component_removed_by_someone_else_meanwhile_stays_removed() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": {**SUITE, "com.acme.Old": {"componentVersion": "1.0.0"}}})
    greengrass.before_create = once(lambda: greengrass.deploy({"targetArn": TARGET, "components": SUITE}))
    deploy(greengrass)
    assert versions(greengrass) == {"com.fedgrass.Suite": "1.0.0", GLOBAL_MODEL: "1.2.0"}


def test_a_deployment_made_just_after_ours_without_our_change_gets_it_again() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": SUITE})
    theirs = {**SUITE, "com.acme.New": {"componentVersion": "1.0.0"}}
    greengrass.after_create = once(lambda: greengrass.deploy({"targetArn": TARGET, "components": theirs}))
    deploy(greengrass)
    assert versions(greengrass) == {"com.fedgrass.Suite": "1.0.0", "com.acme.New": "1.0.0", GLOBAL_MODEL: "1.2.0"}


def test_a_newer_model_is_never_replaced_by_an_older_one() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": {GLOBAL_MODEL: {"componentVersion": "1.10.0"}}})
    with pytest.raises(SupersededError, match=r"1\.10\.0"):
        deploy(greengrass, "1.9.0")
    assert len(greengrass.deployments) == 1


def test_a_newer_model_that_came_between_is_put_back() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": SUITE})
    theirs = {**SUITE, GLOBAL_MODEL: {"componentVersion": "2.0.0"}}
    greengrass.before_create = once(lambda: greengrass.deploy({"targetArn": TARGET, "components": theirs}))
    with pytest.raises(SupersededError):
        deploy(greengrass)
    assert versions(greengrass) == {"com.fedgrass.Suite": "1.0.0", GLOBAL_MODEL: "2.0.0"}


def test_a_list_that_lags_behind_is_waited_for() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy({"targetArn": TARGET, "components": SUITE})

    def lag() -> None:
        greengrass.hidden_lists = 3

    greengrass.after_create = once(lag)
    assert deploy(greengrass) == "d1"
    assert len(greengrass.deployments) == 2


def test_someone_who_never_stops_deploying_is_an_error_not_a_loop() -> None:
    greengrass = FakeGreengrass()

    def interfere() -> None:
        greengrass.deploy({"targetArn": TARGET, "components": SUITE})

    greengrass.before_create = interfere
    with pytest.raises(ReleaseError, match="others kept deploying"):
        deploy(greengrass)


def test_whatever_others_do_meanwhile_their_last_word_and_ours_both_hold() -> None:
    for seed in range(200):
        generator = random.Random(seed)
        greengrass = FakeGreengrass()
        words: list[dict[str, Any]] = []

        def interfere(
            generator: random.Random = generator,
            greengrass: FakeGreengrass = greengrass,
            words: list[dict[str, Any]] = words,
        ) -> None:
            for _ in range(generator.choice([0, 0, 1, 2]) if len(words) < 5 else 0):
                # Others too start from the latest, or from something they had at hand.
                start = (
                    greengrass.latest["components"] if generator.random() < 0.5 and greengrass.deployments else SUITE
                )
                others = {n: e for n, e in start.items() if n != GLOBAL_MODEL or generator.random() < 0.8}
                others[f"com.acme.C{generator.randrange(3)}"] = {"componentVersion": f"1.{len(words)}.0"}
                words.append({n: e for n, e in others.items() if n != GLOBAL_MODEL})
                greengrass.deploy({"targetArn": TARGET, "components": others})

        interfere()
        greengrass.before_create = greengrass.after_create = interfere
        deploy(greengrass)
        found = dict(greengrass.latest["components"])
        assert found.pop(GLOBAL_MODEL)["componentVersion"] == "1.2.0"
        assert found == (words[-1] if words else {})


def test_settings_are_merged_into_what_the_deployment_says_already_and_only_once() -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy(FULL)

    def merge(settings: dict[str, Any]) -> str | None:
        return configure(double(greengrass), TARGET, "com.acme.Vision", settings, pause=lambda seconds: None)

    merge({"engine": "torch", "builders": {"a" * 64: "one:build"}})
    made = merge({"builders": {"b" * 64: "two:build"}})
    assert merge({"builders": {"b" * 64: "two:build"}}) == made == greengrass.latest["deploymentId"]
    entry = greengrass.latest["components"]["com.acme.Vision"]
    update = entry["configurationUpdate"]
    expected = {"fps": 5, "engine": "torch", "builders": {"a" * 64: "one:build", "b" * 64: "two:build"}}
    assert json.loads(update["merge"]) == expected
    assert update["reset"] == ["/roi"]
    others = {name: value for name, value in FULL["components"].items() if name != "com.acme.Vision"}
    assert {name: value for name, value in greengrass.latest["components"].items() if name in others} == others
    assert entry["runWith"] == FULL["components"]["com.acme.Vision"]["runWith"]
    with pytest.raises(ReleaseError, match=r"does not name com\.acme\.Other"):
        configure(double(greengrass), TARGET, "com.acme.Other", {"a": 1})
    assert configure(double(FakeGreengrass()), TARGET, "com.acme.Vision", {"a": 1}) is None


def test_a_bundles_code_is_trusted_by_its_digest_and_one_without_code_is_refused(tmp_path: Path) -> None:
    greengrass = FakeGreengrass()
    greengrass.deploy(FULL | {"components": FULL["components"] | {RUNTIME: {"componentVersion": "1.0.0"}}})
    clients = double(SimpleNamespace(greengrass=greengrass, thing_group_arn=TARGET))
    bundle = write_first_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigurationError, match="brings no code for 'model:logistic'"):
        trust_builder(bundle, clients, "model:logistic")
    bundle = add_builder(bundle, pack_builder(ROOT / "examples" / "fraud" / "model.py"))
    settings, made = trust_builder(bundle, clients, "model:logistic")
    assert settings == {"engine": "sklearn", "builders": {builder_sha256(bundle): "model:logistic"}}
    entry = greengrass.latest["components"][RUNTIME]
    assert json.loads(entry["configurationUpdate"]["merge"]) == settings
    assert (entry["componentVersion"], greengrass.latest["deploymentId"]) == ("1.0.0", made)
