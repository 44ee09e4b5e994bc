"""Models that normalize their input by what a fleet's profile says, against NumPy and Keras on inputs that are scaled already."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import Bundle
from fedgrass.data.arrays import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.registry import open_engine
from fedgrass.errors import BundleError, DataError
from fedgrass.inference import Application
from fedgrass.manifest import INFERENCE, parse_manifest
from fedgrass.profile.adapt import adapt
from fedgrass.profile.features import feature_names
from fedgrass.profile.sums import FeatureSums
from fedgrass.protocol.profile import Feature, Profile
from tests.fedgrass.simulation.conftest import run

keras = pytest.importorskip("keras")
FIXED = ("normalization/mean", "normalization/variance")


def exported(folder: Path, shape: tuple[int, ...], *, normalized: bool = True) -> Bundle:
    from fedgrass.authoring.export import export

    keras.utils.set_random_seed(3)
    layers = [keras.Input(shape)] + ([keras.layers.Normalization(name="normalization")] if normalized else [])
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(6, "tanh", name="hidden"),
        keras.layers.Dense(3, "softmax", name="out"),
    ]
    model = keras.Sequential(layers)
    return export(model, folder, loss="sparse_categorical_crossentropy", batch_size=8, prove=normalized)


def examples(shape: tuple[int, ...], count: int = 64) -> tuple[Any, Any]:
    """Values of very unlike scales; the label hangs on the last column alone."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(count, *shape))
    y = np.digitize(x.reshape(count, -1)[:, -1], [-0.4, 0.4]).astype(np.int32)
    scale = np.array([1e4, 1.0, 1e-4])
    return (x * scale + scale * 50).astype(np.float32), y


def profile_of(bundle: Bundle, x: Any, **changes: Any) -> Profile:
    rows = x.reshape(len(x), -1).astype(np.float64)
    features = (
        Feature(name=name, count=len(rows), missing=0, mean=float(column.mean()), variance=float(column.var()))
        for name, column in zip(feature_names(bundle.manifest), rows.T, strict=True)
    )
    given = {
        "fleet": "mill",
        "round": 4,
        "made_at": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "model": "1.0.0",
        "graph_sha256": bundle.manifest.graph_sha256,
        "devices": 3,
        "examples": len(rows),
        "features": tuple(features),
    }
    return Profile(**{**given, **changes})


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_an_adapted_model_trains_and_infers_as_one_on_scaled_inputs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bundle, plain = exported(tmp_path / "raw", shape), exported(tmp_path / "plain", shape, normalized=False)
    assert bundle.manifest.fixed == FIXED
    assert [p.name for p in bundle.manifest.shared_parameters] == [p.name for p in plain.manifest.parameters]
    x, y = examples(shape)
    # Of a series all steps are taken together, as Keras' adapt does.
    flat = x.reshape(-1, 3).astype(np.float64)
    scaled = ((x - flat.mean(axis=0)) / flat.std(axis=0)).astype(np.float32)
    made = adapt(bundle, profile_of(bundle, x), tmp_path / "adapted")
    found = made.parameters()
    np.testing.assert_allclose(found[FIXED[0]], flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found[FIXED[1]], flat.var(axis=0), rtol=1e-5)
    assert made.manifest.version == "2.0.0"
    assert made.manifest.files["model.tflite"] == bundle.manifest.files["model.tflite"]
    np.testing.assert_allclose(made.manifest.data.means, x.reshape(len(x), -1).astype(np.float64).mean(axis=0))
    trained = {}
    for name, one, data in (("adapted", made, x), ("plain", plain, scaled)):
        engine = open_engine("litert", one)
        engine.set_parameters({**one.parameters(), **shared_of_plain(plain, name)})
        trained[name] = engine.fit(ArrayDataset(data, y), FitSettings(epochs=3, learning_rate=0.3, seed=5)).parameters
    for name, value in trained["plain"].items():
        np.testing.assert_allclose(trained["adapted"][name], value, rtol=2e-3, atol=2e-5)
    for name in FIXED:
        assert np.array_equal(trained["adapted"][name], found[name]), "no training moves what is fixed"
    application = Application(made.path(INFERENCE), made.manifest)
    own = bundle.parameters()
    hidden = np.tanh(scaled.reshape(len(x), -1) @ own["hidden/kernel"] + own["hidden/bias"])
    logits = hidden @ own["out/kernel"] + own["out/bias"]
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose([application(one[np.newaxis])[0] for one in x[:8]], expected[:8], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
def test_a_feature_that_is_the_same_on_all_devices_keeps_its_unit(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bundle = exported(tmp_path / "raw", shape)
    x, _ = examples(shape)
    x[..., 1] = 98.6
    total = FeatureSums(x[0].size)
    for device in np.array_split(x.reshape(len(x), -1), 7):
        sums = FeatureSums(x[0].size)
        sums.add(device)
        total.merge(sums)  # a mean of means leaves a variance of some 1e-29
    features = tuple(
        Feature(name=name, count=len(x), missing=0, mean=float(total.mean[at]), variance=float(total.variance[at]))
        for at, name in enumerate(feature_names(bundle.manifest))
    )
    found = adapt(bundle, profile_of(bundle, x, features=features), tmp_path / "adapted").parameters()
    np.testing.assert_allclose(found[FIXED[0]].reshape(-1)[1], 98.6, rtol=1e-6)
    assert found[FIXED[1]].reshape(-1)[1] == 1


def shared_of_plain(plain: Bundle, name: str) -> dict[str, Any]:
    """Both begin from the same weights; made apart, they are the same seed's, but need not be."""
    return dict(plain.parameters()) if name == "adapted" else {}


def test_a_fleet_leaves_what_is_fixed_where_it_is_and_sends_none_of_it(tmp_path: Path) -> None:
    bundle = exported(tmp_path / "raw", (3,))
    x, y = examples((3,), 240)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    made = adapt(bundle, profile_of(bundle, x), tmp_path / "adapted")
    settings = {"fit": {"epochs": 2, "learning_rate": 0.3}, "privacy": {"mode": "none"}}
    options: dict[str, Any] = {
        "devices": 6,
        "cohort": 6,
        "rounds": 3,
        "examples": 30,
        "data": str(tmp_path / "data.npz"),
    }
    accuracies = {}
    for name, one in (("raw", bundle), ("adapted", made)):
        run(tmp_path / name / "simulation", settings, bundle=one.folder, **options)
        after, _ = tensors.load(tmp_path / name / "simulation" / "model" / "parameters.safetensors")
        for fixed in FIXED:
            assert np.array_equal(after[fixed], one.parameters()[fixed])
        assert not np.array_equal(after["out/kernel"], one.parameters()["out/kernel"])
        engine = open_engine("litert", one)
        engine.set_parameters(after)
        accuracies[name] = engine.evaluate(ArrayDataset(x, y))["accuracy"]
    # Unscaled, tanh is saturated by the column of 10⁴ and nothing of the one of 10⁻⁴, which decides, is left.
    assert accuracies["adapted"] > accuracies["raw"] + 0.2, accuracies


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    bundle, plain = exported(tmp_path / "raw", (3,)), exported(tmp_path / "plain", (3,), normalized=False)
    x, _ = examples((3,))
    profile = profile_of(bundle, x)
    far = profile.features[0].model_copy(update={"variance": 1e60})
    with pytest.raises(DataError, match=r"feature 'x\[0\]' has a deviation of 1e\+30.*another unit"):
        adapt(bundle, profile_of(bundle, x, features=(far, *profile.features[1:])), tmp_path / "adapted")
    with pytest.raises(DataError, match=r"does not normalize its input.*Normalization"):
        adapt(plain, profile, tmp_path / "made")
    other = profile.model_copy(update={"features": profile.features[::-1]})
    with pytest.raises(DataError, match=r"number 1 is 'x\[2\]', not 'x\[0\]'"):
        adapt(bundle, other, tmp_path / "made")
    empty = profile.features[1].model_copy(update={"mean": None, "variance": None, "count": 0})
    silent = profile.model_copy(update={"features": (profile.features[0], empty, profile.features[2])})
    with pytest.raises(DataError, match=r"no device has a value of x\[1\]"):
        adapt(bundle, silent, tmp_path / "made")
    assert not (tmp_path / "made").exists()
    still = profile.features[1].model_copy(update={"variance": 0.0})
    constant = profile.model_copy(update={"features": (profile.features[0], still, profile.features[2])})
    assert adapt(bundle, constant, tmp_path / "made", version="1.7.0").parameters()[FIXED[1]][1] == 1
    with pytest.raises(BundleError, match="local and fixed"):
        parse_manifest(bundle.manifest.model_copy(update={"local": FIXED[:1]}).to_json())
    with pytest.raises(BundleError, match="fixed names 'nothing'"):
        parse_manifest(bundle.manifest.model_copy(update={"fixed": ("nothing",)}).to_json())
