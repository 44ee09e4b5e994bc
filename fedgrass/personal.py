"""Parameters that a device keeps for itself: a model that is partly shared, partly each device's own.

A bundle's manifest names them (``local``). FedPer keeps the last layer on the device (Arivazhagan et al. 2019,
https://arxiv.org/abs/1912.00818), FedBN the batch normalizations (Li et al. 2021, https://arxiv.org/abs/2102.07623): the same
mechanism with other names. A device trains all parameters, from the fleet's shared and its own local ones, and sends the
difference of the shared alone. One that has none of its own yet, or lost them, starts from the values in the bundle, which stay
what they were at export.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from fedgrass import tensors
from fedgrass.bundle import BUILDER, INFERENCE, INFERENCE_INT8, PARAMETERS, Bundle, Manifest, Parameters
from fedgrass.errors import BundleError
from fedgrass.files import copy_atomically, write_atomically
from fedgrass.inference import application_models, with_parameters
from fedgrass.interface import TensorDescription
from fedgrass.kept_state import KeptState
from fedgrass.tensors import Array

OWN = "own.safetensors"
"""File name of a device's own parameters."""

_OWNER = "local"


@dataclass(frozen=True)
class Own:
    """A device's own parameters in one round.

    Parameters
    ----------
    kept
        Where they are from round to round; None: the model has none, or this participant nowhere to keep them.
    """

    kept: KeptState | None = None

    @classmethod
    def of(cls, manifest: Manifest, path: Path | None, identity: str = "", *, durable: bool = True) -> Own:
        """Return a device's own parameters of a model.

        Parameters
        ----------
        manifest
            Of the model.
        path
            File that keeps them, bound to the graph; None keeps nothing.
        identity
            Differs between any two rounds, and is the same when a round's work is repeated: it then starts from what it started
            from. Without one the newest are meant.
        durable
            Whether they must outlive a power cut.
        """
        if path is None or not manifest.local_parameters:
            return cls()
        # graph_sha256 of this copy is the model's own, which is what the state is bound to.
        own = manifest.model_copy(update={"parameters": manifest.local_parameters})
        return cls(KeptState(path, own, identity, owner=_OWNER, durable=durable))

    @cached_property
    def values(self) -> Parameters:
        """The arrays by name; none if there is no file, or it is damaged or of another graph."""
        return {} if self.kept is None else self.kept.before()

    def over(self, parameters: Mapping[str, Array]) -> Parameters:
        """Return a model's parameters with the device's own among them."""
        return {**parameters, **self.values}

    def keep(self, trained: Mapping[str, Array]) -> None:
        """Keep what training made of them; call it before the update is written."""
        if self.kept is not None:
            after = {parameter.name: trained[parameter.name] for parameter in self.kept.manifest.parameters}
            self.kept.keep(self.values, after)


def shared_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest that names the shared parameters only: what residuals and updates are of."""
    if manifest.shares_all:
        return manifest
    return manifest.model_copy(update={"parameters": manifest.shared_parameters})


def shared_of(manifest: Manifest, parameters: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the shared ones among a model's parameters, in the manifest's order; none is read before it is asked for."""
    if manifest.shares_all:
        return parameters
    return _Some(parameters, tuple(parameter.name for parameter in manifest.shared_parameters))


class _Some(Mapping[str, "Array"]):
    """Some of a mapping's arrays."""

    def __init__(self, arrays: Mapping[str, Array], names: Sequence[str]) -> None:
        self._arrays = arrays
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_personal(bundle: Bundle, own: Parameters, folder: Path) -> Bundle:
    """Write a bundle that differs from another one in a device's own parameters, and so in what the application loads.

    Parameters
    ----------
    bundle
        The fleet's model, verified.
    own
        The device's parameters, by name.
    folder
        Made if absent.

    Returns
    -------
    Bundle
        The bundle, for this device alone.

    Raises
    ------
    BundleError
        If the bundle cannot be read, or does not say where a parameter lies in the application's model.
    """
    manifest = bundle.manifest
    folder.mkdir(parents=True, exist_ok=True)
    tensors.save(folder / PARAMETERS, {**bundle.parameters(), **own})
    # Hard links: the graph is the same file, and may be as large as the parameters.
    for name in (manifest.graph_file, BUILDER):
        if name in manifest.files:
            _linked(bundle.path(name), folder / name)
    if INFERENCE in manifest.files:
        places = [constant for constant in manifest.constants if constant.parameter in own]
        if missing := own.keys() - {constant.parameter for constant in places}:
            raise BundleError(
                f"{bundle.folder}: the manifest does not say where {min(missing)!r} lies in {INFERENCE}; export the bundle again"
            )
        # Only what is the device's own: what the round's job pruned of the rest stays so.
        content = with_parameters(bundle.path(INFERENCE).read_bytes(), places, own)
        for name, made in application_models(content, int8=INFERENCE_INT8 in manifest.files).items():
            write_atomically(folder / name, made)
    return Bundle.seal(folder, manifest)


def _linked(path: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:  # another file system, or one without links
        copy_atomically(path, to)


def local_names(
    patterns: Sequence[str],
    parameters: Sequence[TensorDescription],
    statistics: Collection[str],
    *,
    outputs: int = 1,
) -> tuple[str, ...]:
    """Return the parameters that patterns name, in the model's order.

    Parameters
    ----------
    patterns
        ``head``: those of the last layer. ``bn``: all four of each batch normalization. Else a parameter's or a layer's name,
        with ``*`` and ``?`` as a shell has them.
    parameters, statistics
        The model's, in order, and which of them are statistics.
    outputs
        How many outputs it has: with several there is no last layer.

    Raises
    ------
    BundleError
        If a pattern names nothing, or all parameters would be local.

    Examples
    --------
    >>> names = ("conv/kernel", "bn/gamma", "bn/moving_mean", "dense/kernel", "dense/bias")
    >>> given = [TensorDescription(name=name, shape=(1,), dtype="float32") for name in names]
    >>> local_names(["head"], given, {"bn/moving_mean"})
    ('dense/kernel', 'dense/bias')
    >>> local_names(["bn"], given, {"bn/moving_mean"})
    ('bn/gamma', 'bn/moving_mean')
    """
    names = [parameter.name for parameter in parameters]
    found: set[str] = set()
    for pattern in patterns:
        some = _named(pattern, names, statistics, outputs)
        if not some:
            known = ", ".join(dict.fromkeys(map(layer_of, names)))[:300]
            raise BundleError(f"local {pattern!r}: names no parameter; the layers that train are {known}")
        found |= some
    if len(found) == len(names):
        raise BundleError(
            f"local {', '.join(patterns)}: leaves nothing to share; expected one shared parameter at least"
        )
    return tuple(name for name in names if name in found)


def _named(pattern: str, names: Sequence[str], statistics: Collection[str], outputs: int) -> set[str]:
    if pattern == "bn":
        # A normalization is recognised by its statistics; its scale and offset have the same layer.
        layers = {layer_of(name) for name in statistics}
        return {name for name in names if layer_of(name) in layers}
    if pattern == "head":
        if outputs > 1:
            raise BundleError(f"local 'head': the model has {outputs} outputs; name the layers that are to be local")
        last = [layer_of(name) for name in names if name not in statistics][-1:]
        if set(last) & set(names):
            raise BundleError(
                "local 'head': the parameters' names tell no layers; name the parameters that are to be local"
            )
        return {name for name in names if layer_of(name) in last}
    return {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(layer_of(name), pattern)}


def layer_of(name: str) -> str:
    """Return what a parameter's name says of its layer: what comes before the last ``/``, or as PyTorch has it ``.``."""
    separator = "/" if "/" in name else "."
    return name.rpartition(separator)[0] or name
