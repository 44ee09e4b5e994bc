"""Bundles of models that another engine than LiteRT trains.

``architecture.json`` takes the place of the graph: it names the engine, and each parameter's shape and dtype. Its digest is
the graph's digest, so updates of another architecture are refused as those of another graph are. The code that builds the
model is not in the bundle: each participant names its own, as ``builder`` in its configuration, so that no download brings code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedgrass import tensors
from fedgrass.bundle import (
    ARCHITECTURE,
    PARAMETERS,
    Bundle,
    InitialParameters,
    Loss,
    Manifest,
    Optimizer,
    Parameters,
    Statistic,
    TensorDescription,
)
from fedgrass.files import write_atomically
from fedgrass.statistics import inferred_statistics


def new_bundle(
    folder: Path,
    *,
    engine: str,
    name: str,
    parameters: Parameters,
    x: TensorDescription,
    y: TensorDescription,
    output: TensorDescription,
    loss: Loss,
    batch_size: int,
    optimizer: Optimizer | None = None,
    class_names: Sequence[str] = (),
    version: str = "1.0.0",
    statistics: Mapping[str, Statistic] | None = None,
) -> Bundle:
    """Write the first bundle of a model.

    Parameters
    ----------
    engine
        Name of the engine that trains it: ``keras``, ``torch``, ``sklearn`` or ``flower``.
    parameters
        The initial ones, float32: each engine's module has ``initial_parameters(builder)``.
    x, y, output
        Names, shapes without the batch axis, and dtypes. ``output`` of a classifier are probabilities or logits.
    statistics
        Which parameters the forward pass measures, such as a batch normalization's: ``mean`` or ``variance`` (never below zero).
        Those of an engine's ``initial_parameters`` are known; otherwise, if not given, batch normalizations are recognised.

    Raises
    ------
    BundleError
        If that is no valid model.
    """
    described = tuple(
        TensorDescription(name=key, shape=value.shape, dtype=value.dtype.name) for key, value in parameters.items()
    )
    if statistics is None:
        known = parameters.statistics if isinstance(parameters, InitialParameters) else None
        statistics = inferred_statistics(described) if known is None else known
    folder.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "engine": engine, "parameters": [item.model_dump(mode="json") for item in described]}
    write_atomically(folder / ARCHITECTURE, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    tensors.save(folder / PARAMETERS, parameters)
    manifest = Manifest.model_construct(
        name=name,
        version=version,
        batch_size=batch_size,
        x=x,
        y=y,
        output=output,
        class_names=tuple(class_names),
        loss=loss,
        optimizer=optimizer or Optimizer(),
        parameters=described,
        statistics=dict(statistics),
    )
    return Bundle.seal(folder, manifest)
