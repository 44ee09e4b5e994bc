"""Configuration as either nucleus gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fedgrass.edge import settings
from fedgrass.edge.settings import HeartbeatSettings, ModelDeployerSettings, RuntimeSettings, Settings, TrainerSettings
from fedgrass.errors import ConfigurationError

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
MODELS: dict[str, type[Settings]] = {
    "com.fedgrass.Runtime": RuntimeSettings,
    "com.fedgrass.Trainer": TrainerSettings,
    "com.fedgrass.ModelDeployer": ModelDeployerSettings,
    "com.fedgrass.Heartbeat": HeartbeatSettings,
}


def test_strings_as_nucleus_lite_gives_them_are_coerced() -> None:
    document = {
        "fleet": "f",
        "threads": "2",
        "data": {"path": "/x.npz", "validationFraction": "0.25", "seed": "7"},
        "accessControl": {"anything": "{}"},
    }
    read = settings.parse(RuntimeSettings, document, "com.fedgrass.Runtime")
    assert (read.threads, read.data.validation_fraction, read.data.seed) == (2, 0.25, 7)


def test_null_in_either_spelling_means_the_default() -> None:
    read = settings.parse(TrainerSettings, {"niceLevel": "null", "deferSeconds": None}, "com.fedgrass.Trainer")
    assert read == TrainerSettings()


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({}, "fleet"),
        ({"fleet": "a b"}, "fleet"),
        ({"fleet": "f", "threads": "many"}, "threads"),
        ({"fleet": "f", "data": {"seed": -1}}, "data.seed"),
    ],
)
def test_a_wrong_setting_is_named_with_its_component(document: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"com\.fedgrass\.Runtime: {named}"):
        settings.parse(RuntimeSettings, document, "com.fedgrass.Runtime")


@pytest.mark.parametrize("component", MODELS)
def test_the_recipes_defaults_are_valid_and_known(component: str) -> None:
    recipe = yaml.safe_load((RECIPES / f"{component}.yaml").read_text())
    defaults = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    model = MODELS[component]
    settings.parse(model, defaults, component)
    known = {field.alias for field in model.model_fields.values()}
    assert set(defaults) - {"accessControl"} <= known
