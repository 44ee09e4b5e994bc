"""The model bundle: what is missing, altered or another model's is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import (
    GRAPH,
    INFERENCE,
    MANIFEST,
    PARAMETERS,
    Bundle,
    FileDescription,
    Manifest,
    TensorDescription,
    check_parameters,
    parse_manifest,
)
from fedgrass.errors import BundleError

FILES = {name: FileDescription(sha256="0" * 64, bytes=0) for name in (GRAPH, PARAMETERS, INFERENCE)}
WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(3, np.float32)}


def manifest() -> Manifest:
    return Manifest(
        name="small",
        batch_size=4,
        x=TensorDescription(name="x", shape=(2,), dtype="float32"),
        y=TensorDescription(name="y", shape=(), dtype="int32"),
        output=TensorDescription(name="p", shape=(3,), dtype="float32"),
        loss="sparse_categorical_crossentropy",
        parameters=tuple(TensorDescription(name=k, shape=v.shape, dtype="float32") for k, v in WEIGHTS.items()),
        files=FILES,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / GRAPH).write_bytes(b"graph")
    (tmp_path / INFERENCE).write_bytes(b"inference")
    tensors.save(tmp_path / PARAMETERS, WEIGHTS)
    return Bundle.seal(tmp_path, manifest())


def test_a_sealed_bundle_opens_with_its_parameters_in_the_manifests_order(bundle: Bundle) -> None:
    opened = Bundle.open(bundle.folder)
    opened.verify()
    assert list(opened.parameters()) == ["w", "b"]
    assert np.array_equal(opened.parameters()["w"], WEIGHTS["w"])
    assert opened.manifest.parameter_count == 9


@pytest.mark.parametrize("name", [GRAPH, PARAMETERS, INFERENCE])
def test_an_altered_file_is_named(bundle: Bundle, name: str) -> None:
    content = bytearray((bundle.folder / name).read_bytes())
    content[-1] ^= 1
    (bundle.folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        bundle.verify()


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.folder / GRAPH).unlink()
    with pytest.raises(BundleError, match="missing; the manifest names it"):
        bundle.verify()


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="a model bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"schema_": 2},
        {"batch_size": 0},
        {"loss": "guess"},
        {"files": {GRAPH: FILES[GRAPH]}},
        {"files": {**FILES, "../evil": FILES[GRAPH]}},
        {"parameters": ()},
        {"parameters": (TensorDescription(name="w", shape=(), dtype="float32"),) * 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_manifest_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        parse_manifest(manifest().model_copy(update=change).to_json())


@pytest.mark.parametrize(
    "parameters",
    [
        {"w": WEIGHTS["w"]},
        {**WEIGHTS, "extra": WEIGHTS["b"]},
        {**WEIGHTS, "b": np.zeros(4, np.float32)},
        {**WEIGHTS, "b": np.zeros(3, np.float64)},
    ],
    ids=["too few", "too many", "shape", "dtype"],
)
def test_parameters_of_another_model_are_refused(parameters: dict[str, tensors.Array]) -> None:
    with pytest.raises(BundleError, match=r"parameters"):
        check_parameters(parameters, manifest())
