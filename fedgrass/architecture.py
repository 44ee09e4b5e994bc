"""Bundles of models that another engine than LiteRT trains.

``architecture.json`` takes the place of the graph: it names the engine, and each parameter's shape and dtype. Its digest is
the graph's digest, so updates of another architecture are refused as those of another graph are. The code that builds the
model is named by each participant in its configuration, never by the bundle: as ``builder`` what is installed there, or in
``builders`` by digest what the bundle may bring (`fedgrass.builder_archive`), so that no download decides which code runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from fedgrass.errors import BundleError
from fedgrass.files import write_atomically
from fedgrass.native import native_dtypes
from fedgrass.personal import local_names
from fedgrass.statistics import inferred_statistics


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """What the first bundle of a model says of it.

    Attributes
    ----------
    engine
        Name of the engine that trains it, as settings have it (`fedgrass.parts.ENGINES` lists them).
    name
        The model's name, as people see it.
    parameters
        The initial ones: each engine's module has ``initial_parameters(builder)``. They travel as float32. What is whole
        numbers, or yes and no, in the model's own code, such as a counter, is a statistic, and rounded where that code gets it.
    x, y, output
        Names, shapes without the batch axis, and dtypes. ``output`` of a classifier are probabilities or logits.
    loss
        What training minimises.
    batch_size
        Examples in a step.
    optimizer
        How a device steps; plain gradient descent if not given.
    class_names
        What a classifier's labels mean, in their order.
    version
        ``MAJOR.MINOR.PATCH``; rounds count the minor version up.
    statistics
        Which parameters the forward pass measures, such as a batch normalization's: ``mean`` or ``variance`` (never below zero).
        Those of an engine's ``initial_parameters`` are known; otherwise, if not given, batch normalizations are recognised.
    local
        What each device keeps for itself: ``head``, ``bn``, or names of layers or parameters (`fedgrass.personal.local_names`).
    """

    engine: str
    name: str
    parameters: Parameters
    x: TensorDescription
    y: TensorDescription
    output: TensorDescription
    loss: Loss
    batch_size: int
    optimizer: Optimizer | None = None
    class_names: Sequence[str] = ()
    version: str = "1.0.0"
    statistics: Mapping[str, Statistic] | None = None
    local: Sequence[str] = ()


def engine_of(bundle: Bundle) -> str:
    """Return the engine that a bundle was made for: ``litert``, or what its ``architecture.json`` names.

    Raises
    ------
    BundleError
        If that file is not what the manifest says, or names none.
    """
    if bundle.manifest.graph_file != ARCHITECTURE:
        return "litert"
    # The file decides which code runs, so its digest comes before its content.
    bundle.verify()
    try:
        return str(json.loads(bundle.path(ARCHITECTURE).read_bytes())["engine"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path(ARCHITECTURE)}: names no engine; make the bundle again") from error


def new_bundle(folder: Path, model: NewModel) -> Bundle:
    """Write the first bundle of a model that another engine than LiteRT trains.

    Parameters
    ----------
    folder
        Where it is written; made if absent.
    model
        Its parameters, and what is said of them.

    Returns
    -------
    Bundle
        The bundle, sealed: its manifest has the digest of each file.

    Raises
    ------
    BundleError
        If that is not a valid model.

    Examples
    --------
    >>> import numpy as np
    >>> from tempfile import mkdtemp
    >>> x = TensorDescription(name="x", shape=(2,), dtype="float32")
    >>> y = TensorDescription(name="y", shape=(1,), dtype="float32")
    >>> model = NewModel(
    ...     engine="torch",
    ...     name="line",
    ...     parameters={"w": np.zeros((2, 1), np.float32)},
    ...     x=x,
    ...     y=y,
    ...     output=y,
    ...     loss="mean_squared_error",
    ...     batch_size=16,
    ... )
    >>> new_bundle(Path(mkdtemp()), model).manifest.parameter_count
    2
    """
    statistics, native = model.statistics, native_dtypes(model.parameters)
    # float32 is what updates and sums are made of, whatever the model's own code uses.
    parameters = {name: np.asarray(value, np.float32) for name, value in model.parameters.items()}
    described = tuple(
        TensorDescription(name=key, shape=value.shape, dtype=value.dtype.name) for key, value in parameters.items()
    )
    if statistics is None:
        known = model.parameters.statistics if isinstance(model.parameters, InitialParameters) else None
        statistics = inferred_statistics(described) if known is None else known
    counted: dict[str, Statistic] = {name: "mean" for name, dtype in native.items() if not dtype.startswith("float")}
    own = local_names(model.local, described, statistics) if model.local else ()
    state = model.parameters.local if isinstance(model.parameters, InitialParameters) else ()
    folder.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "engine": model.engine, "parameters": [item.model_dump(mode="json") for item in described]}
    write_atomically(folder / ARCHITECTURE, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())
    tensors.save(folder / PARAMETERS, parameters)
    # Not validated yet: a manifest must name its files, which `seal` adds, and reading it back validates all of it.
    manifest = Manifest.model_construct(
        name=model.name,
        version=model.version,
        batch_size=model.batch_size,
        x=model.x,
        y=model.y,
        output=model.output,
        class_names=tuple(model.class_names),
        loss=model.loss,
        optimizer=model.optimizer or Optimizer(),
        parameters=described,
        statistics={**counted, **statistics},
        native=native or None,
        local=(*own, *state) or None,
    )
    return Bundle.seal(folder, manifest)
