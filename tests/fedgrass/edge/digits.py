"""The digits example as test material: its bundle, its data, and versions of it that are better or worse."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fedgrass import data
from fedgrass.bundle import Bundle, Parameters
from fedgrass.data import DataSettings
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.inference import write_bundle
from fedgrass.protocol.messages import Base
from fedgrass.tensors import Array

BUNDLE = Path(__file__).resolve().parents[3] / "examples" / "digits" / "bundle"


@cache
def examples() -> tuple[Array, Array]:
    """All digits as the model takes them."""
    loaded = load_digits()
    return (loaded.images[..., np.newaxis] / 16).astype(np.float32), loaded.target.astype(np.int32)


def write_data(path: Path, count: int = 200) -> Path:
    """Write the first digits as a device's data."""
    x, y = examples()
    np.savez(path, x=x[:count], y=y[:count])
    return path


@cache
def trained() -> Parameters:
    """Parameters that know digits well."""
    x, y = examples()
    engine = LiteRTEngine(Bundle.open(BUNDLE))
    engine.fit(data.split(x, y, validation_fraction=0.2, seed=0).train, FitSettings(epochs=5, learning_rate=0.2))
    return engine.get_parameters()


def random() -> Parameters:
    """Parameters that know nothing."""
    generator = np.random.default_rng(1)
    return {
        name: generator.normal(size=value.shape).astype(value.dtype)
        for name, value in Bundle.open(BUNDLE).parameters().items()
    }


def version(folder: Path, number: str, parameters: Parameters) -> Bundle:
    """Write a version of the digits bundle."""
    return write_bundle(Bundle.open(BUNDLE), parameters, folder, version=number)


def base_of(bundle: Bundle, fleet: str) -> Base:
    """How a round announces this bundle."""
    manifest = bundle.manifest
    return Base(
        version=manifest.version,
        parameters_key=f"models/{fleet}/{manifest.version}/parameters.safetensors",
        parameters_sha256=manifest.parameters_sha256,
        graph_sha256=manifest.graph_sha256,
    )


def settings_for(path: Path) -> DataSettings:
    """Settings that read a data file."""
    return DataSettings(path=str(path), validation_fraction=0.2)
