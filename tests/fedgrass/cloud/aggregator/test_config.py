from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedgrass.cloud.aggregator.config import Container
from fedgrass.errors import ConfigurationError

ENVIRONMENT = {
    "FEDGRASS_FLEET": "mill",
    "FEDGRASS_ROUND": "7",
    "FEDGRASS_BUCKET": "bucket",
    "FEDGRASS_ROUNDS_TABLE": "rounds",
    "FEDGRASS_DEVICES_TABLE": "devices",
    "FEDGRASS_THING_GROUP_ARN": "arn:aws:iot:us-east-1:123456789012:thinggroup/mill",
}


def container(tmp_path: Path, **files: object) -> Container:
    (tmp_path / "config").mkdir()
    for name, document in files.items():
        (tmp_path / "config" / f"{name}.json").write_text(json.dumps(document))
    return Container.of({"FEDGRASS_ML_ROOT": str(tmp_path)})


def test_the_root_is_sagemakers_unless_another_is_named() -> None:
    assert Container.of({}).root == Path("/opt/ml")


def test_what_the_process_lacks_is_taken_from_the_jobs_configuration(tmp_path: Path) -> None:
    found = container(tmp_path, processingjobconfig={"Environment": {**ENVIRONMENT, "FEDGRASS_ROUND": "6"}})
    assert found.settings({}).round == 6
    assert found.settings({"FEDGRASS_ROUND": "9"}).round == 9


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_a_missing_variable_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        container(tmp_path).settings({key: value for key, value in ENVIRONMENT.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [("FEDGRASS_ROUND", "0"), ("FEDGRASS_ROUND", "x"), ("FEDGRASS_FLEET", "a/b"), ("FEDGRASS_THING_GROUP_ARN", "mill")],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        container(tmp_path).settings({**ENVIRONMENT, name: value})


def test_an_instance_knows_its_place(tmp_path: Path) -> None:
    hosts = ["algo-2", "algo-1"]
    assert container(tmp_path, resourceconfig={"current_host": "algo-1", "hosts": hosts}).instance() == (0, 2)
    config = tmp_path / "config" / "resourceconfig.json"
    config.write_text(json.dumps({"current_host": "algo-2", "hosts": hosts}))
    assert Container(tmp_path).instance() == (1, 2)
    config.write_text(json.dumps({"current_host": "algo-3", "hosts": hosts}))
    with pytest.raises(ConfigurationError, match="algo-3"):
        Container(tmp_path).instance()
    config.unlink()
    assert Container(tmp_path).instance() == (0, 1)


def test_the_last_word_fits_a_kilobyte_and_stays_text(tmp_path: Path) -> None:
    container(tmp_path).say("€" * 1000)
    content = (tmp_path / "output" / "message").read_bytes()
    assert len(content) <= 1024
    assert set(content.decode()) == {"€"}


def test_a_broken_configuration_file_is_named(tmp_path: Path) -> None:
    found = container(tmp_path, processingjobconfig=[])
    with pytest.raises(ConfigurationError, match=r"processingjobconfig\.json"):
        found.settings(ENVIRONMENT)


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user other than root finds what SageMaker mounts; tests may run as root, whom no mode stops."""

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)


def test_a_missing_right_ends_no_job_whose_settings_are_all_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = container(tmp_path, processingjobconfig={"Environment": {}}, resourceconfig={"hosts": ["algo-1"]})
    unreadable(monkeypatch)
    assert found.settings(ENVIRONMENT).fleet == ENVIRONMENT["FEDGRASS_FLEET"]
    assert found.instance({**ENVIRONMENT, "FEDGRASS_INSTANCES": "1"}) == (0, 1)
    with pytest.raises(ConfigurationError, match=r"resourceconfig.json: cannot be read, and one of 4 instances"):
        found.instance({**ENVIRONMENT, "FEDGRASS_INSTANCES": "4"})
