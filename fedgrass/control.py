"""What the strategies SCAFFOLD and FedDyn have a device keep from round to round, and what they add to its gradient.

SCAFFOLD's device steps along g + c - cᵢ, where c is the fleet's control variate and cᵢ its own: its mean gradient of the round
before. FedDyn's steps along g - gᵢ + α·(w - base). Of either the next is minus the sum of what was added and of the difference
times a factor: one over the step length, or α. Karimireddy et al. 2020, https://arxiv.org/abs/1910.06378; Acar et al. 2021,
https://arxiv.org/abs/2111.04263.

A device that has none, because it is new, lost it, or the fleet's was let go of, takes an ordinary step: it begins with the
fleet's control variate as its own, and with none of FedDyn's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from fedgrass import tensors
from fedgrass.bounds import MAX_HEADER_BYTES
from fedgrass.bundle import Manifest, Parameters
from fedgrass.downloads import ObjectStore, fetch
from fedgrass.errors import BundleError, EngineError
from fedgrass.kept_state import KeptState
from fedgrass.objectives import Optimizer
from fedgrass.protocol.messages import Announcement
from fedgrass.statistics import statistics_of
from fedgrass.tensors import Array

SERVER_STATE = "server.safetensors"
"""Name of the server's state beside a model's files."""
STEP_LENGTH = "step_length"
"""Metric of an update: the sum of the learning rates that its difference is made of."""

_VECTOR = "control"


@dataclass(frozen=True)
class ControlFiles:
    """Where a participant's control variate is, and the fleet's of this round's base (None: there is none)."""

    own: Path
    server: Path | None = None
    durable: bool = True


@dataclass(frozen=True)
class Control:
    """A device's part of such a strategy in one round.

    Parameters
    ----------
    kind
        Which strategy.
    kept
        What the device keeps.
    fleet
        SCAFFOLD's c by parameter; empty for none.
    fresh
        Whether the fleet has nothing yet of what devices keep.
    factor
        FedDyn's α.
    """

    kind: str
    kept: KeptState
    manifest: Manifest
    fleet: Mapping[str, Array]
    fresh: bool
    factor: float

    @classmethod
    def of(
        cls, announcement: Announcement, manifest: Manifest, files: ControlFiles | None, identity: str
    ) -> Control | None:
        """Return a round's; None if its strategy has devices keep nothing, or this participant has nowhere to keep it.

        Parameters
        ----------
        announcement
            The round.
        manifest
            Of its base.
        files
            Where the states are.
        identity
            Differs between any two rounds, and is the same when a round's work is repeated.

        Raises
        ------
        BundleError
            If the fleet's control variate is not one of this base.
        """
        fit, state = announcement.fit, announcement.base.state
        if fit.control is None or files is None:
            return None
        # A state of another strategy lies beside the model where the fleet has just changed its strategy.
        belongs = state is not None and state.strategy == fit.control
        server = files.server if belongs and fit.control == "scaffold" else None
        fleet = {} if server is None else server_control(server, manifest)
        kept = KeptState(files.own, manifest, identity, owner=fit.control, durable=files.durable)
        return cls(fit.control, kept, manifest, fleet, fresh=not belongs, factor=fit.proximal_mu)

    @cached_property
    def correction(self) -> Parameters | None:
        """What is added to the gradient in every step, by parameter; None for nothing."""
        own = self._own
        # With one of SCAFFOLD's two variates only, the correction would be a push, not a difference.
        if not own or (self.kind == "scaffold" and not self.fleet):
            return None
        plain = self._plain
        return {
            name: np.zeros_like(value) if name in plain else np.asarray(self.fleet.get(name, 0) - value, value.dtype)
            for name, value in own.items()
        }

    def keep(self, base: Mapping[str, Array], local: Mapping[str, Array], step_length: float) -> None:
        """Keep what the next round needs; call it before the update is written.

        Parameters
        ----------
        base, local
            Parameters before and after training.
        step_length
            The sum of the learning rates in between, as `step_length` gives it.
        """
        # Mean gradient = (base - local) / Σ rates; FedDyn's linear term grows by α times the difference.
        factor = np.float32(1 / step_length if self.kind == "scaffold" else self.factor)
        plain, correction = self._plain, self.correction or {}
        after = {}
        for name, value in base.items():
            difference = np.subtract(local[name], value, dtype=np.float32) * factor
            own = -difference - np.asarray(correction.get(name, 0), np.float32)
            after[name] = np.asarray(np.zeros_like(value) if name in plain else own, value.dtype)
        self.kept.keep(self._own, after)

    @property
    def _plain(self) -> frozenset[str]:
        """Parameters without a correction: statistics have no gradient, and what a device keeps for itself does not drift."""
        return frozenset(statistics_of(self.manifest)) | {p.name for p in self.manifest.local_parameters}

    @cached_property
    def _own(self) -> Parameters:
        return {} if self.fresh else self.kept.before()


def fetch_control(
    store: ObjectStore, bucket: str, announcement: Announcement, manifest: Manifest, folder: Path
) -> Path | None:
    """Download the fleet's control variate of a round's base; None if its strategy has none, or none yet.

    Parameters
    ----------
    store
        An S3 client.
    bucket
        The bucket.
    announcement
        The round.
    manifest
        Of its base.
    folder
        Where the file goes; what is whole there is not fetched again.

    Raises
    ------
    TransferError
        If the object cannot be read now.
    BundleError
        If it is another one, or too large.
    """
    base, path = announcement.base, folder / SERVER_STATE
    if announcement.fit.control != "scaffold" or base.state is None or base.state.strategy != "scaffold":
        return None
    key = str(PurePosixPath(base.parameters_key).parent / SERVER_STATE)
    fetch(store, bucket, key, path, sha256=base.state.sha256, size=server_state_bytes(manifest), exact=False)
    return path


def server_control(path: Path, manifest: Manifest) -> Parameters:
    """Read the fleet's control variate of a base.

    Parameters
    ----------
    path
        The server's state, untrusted.
    manifest
        Of the base.

    Returns
    -------
    dict
        Float32 arrays by parameter.

    Raises
    ------
    TensorFileError
        If the file is malformed, or larger than such a state can be.
    BundleError
        If it is of another model, or not finite.
    """
    size = sum(parameter.size for parameter in manifest.shared_parameters)
    stored, metadata = tensors.load(path, max_bytes=server_state_bytes(manifest))
    vector = stored.get(_VECTOR)
    if metadata.get("parameters_sha256") != manifest.parameters_sha256 or vector is None:
        raise BundleError(f"{path}: is not the control variate of model {manifest.name!r} {manifest.version}")
    if vector.shape != (size,) or vector.dtype != np.float32 or not np.isfinite(vector).all():
        raise BundleError(
            f"{path}: control is {vector.dtype}{list(vector.shape)}; expected float32[{size}], all finite"
        )
    found, end = {}, 0
    for parameter in manifest.shared_parameters:
        found[parameter.name] = vector[end : (end := end + parameter.size)].reshape(parameter.shape)
    return found


def server_state_bytes(manifest: Manifest) -> int:
    """Return how large a control variate's file can be."""
    # 4 bytes for each float32; 8 are the header's length.
    return 4 * manifest.parameter_count + MAX_HEADER_BYTES + 8


def step_length(optimizer: Optimizer, rate: float, steps: int) -> float:
    """Return the sum of a round's learning rates as they reach the parameters: a constant gradient g moves them by -g times it.

    Parameters
    ----------
    optimizer
        The model's: ``sgd`` or ``momentum``, whose steps are linear in the gradient.
    rate
        The round's learning rate.
    steps
        Batches of the whole round.

    Raises
    ------
    EngineError
        If the optimizer is another.

    Examples
    --------
    >>> step_length(Optimizer(name="sgd"), 0.1, 20)
    2.0
    """
    require_linear(optimizer)
    if optimizer.name == "sgd" or optimizer.momentum == 0:
        return rate * steps if optimizer.schedule is None else sum(optimizer.rate_at(rate, k) for k in range(steps))
    # Keras: v = m·v - rate·g; w += v, or with Nesterov w += m·v - rate·g.
    moved = velocity = 0.0
    for step in range(steps):
        now = optimizer.rate_at(rate, step)
        velocity = optimizer.momentum * velocity + now
        moved += optimizer.momentum * velocity + now if optimizer.nesterov else velocity
    return moved


def require_linear(optimizer: Optimizer) -> None:
    """Raise `EngineError` unless an optimizer's steps are linear in the gradient, as SCAFFOLD needs it."""
    if optimizer.name not in ("sgd", "momentum"):
        raise EngineError(
            f"strategy scaffold: the model trains with {optimizer.name}, whose steps do not tell the gradient; "
            "expected sgd or momentum. Export it with --optimizer sgd, or use strategy feddyn"
        )
