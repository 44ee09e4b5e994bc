"""Error feedback: what a lossy codec left out of an update is kept on the device, and added to its next one.

Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
https://arxiv.org/abs/1901.09847
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Manifest, Parameters, check_parameters
from fedgrass.errors import BundleError, TensorFileError
from fedgrass.tensors import Array


@dataclass(frozen=True)
class ErrorFeedback:
    """The residual of one model on one device, in a file.

    The file holds two residuals: the one that went into the last round's update, and the one that came out of it. A round
    whose work is done again, because it was killed before its answer was safe, starts from the former, and so adds nothing
    twice and gives the same update. An update that never counts takes what it carried with it, as any lost update does.

    Parameters
    ----------
    path
        The file. Damaged, or of another graph, it counts as none: what it held is lost, and nothing else.
    round_identity
        Differs between any two rounds, and is the same when a round's work is repeated.
    """

    path: Path
    manifest: Manifest
    round_identity: str

    def before(self) -> Parameters:
        """Return what is to be added to this round's difference; nothing (an empty dictionary) if there is none."""
        if not self.path.exists():
            return {}
        with contextlib.suppress(TensorFileError, BundleError, KeyError):
            stored, metadata = tensors.load(self.path)
            if metadata["graph_sha256"] == self.manifest.graph_sha256:
                # The same round again: its update is made of what went into it, not of what came out.
                kept = "before" if metadata["round"] == self.round_identity else "after"
                residual = {
                    name.removeprefix(f"{kept}/"): v for name, v in stored.items() if name.startswith(f"{kept}/")
                }
                # A residual that is not finite would spoil every later update of this device.
                if residual and all(np.isfinite(value).all() for value in residual.values()):
                    return check_parameters(residual, self.manifest, name=str(self.path))
        return {}

    def keep(self, before: Parameters, after: Parameters) -> None:
        """Write both residuals durably; to be done before the update is written."""
        if not before and not after:
            return
        stored: dict[str, Array] = {f"before/{name}": value for name, value in before.items()}
        stored |= {f"after/{name}": value for name, value in after.items()}
        metadata = {"graph_sha256": self.manifest.graph_sha256, "round": self.round_identity}
        tensors.save(self.path, stored, metadata)
