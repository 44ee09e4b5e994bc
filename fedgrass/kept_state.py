"""What a device keeps of one round for the next, in a file: never added twice, never another model's."""

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
class KeptState:
    """Arrays of one model's parameters on one device, in a file.

    The file holds two: what went into the last round, and what came out of it. A round whose work is done again, because it was
    killed before its answer was safe, starts from the former, and so gives the same update.

    Parameters
    ----------
    path
        The file. Damaged, or of another graph or owner, it counts as none: what it held is lost, and nothing else.
    round_identity
        Differs between any two rounds, and is the same when a round's work is repeated.
    owner
        Whose state it is; another's is not taken up.
    durable
        Whether it must outlive a power cut.
    """

    path: Path
    manifest: Manifest
    round_identity: str
    owner: str = ""
    durable: bool = True

    def before(self) -> Parameters:
        """Return what goes into this round, by parameter; nothing (an empty dictionary) if there is none."""
        if not self.path.exists():
            return {}
        with contextlib.suppress(TensorFileError, BundleError, KeyError):
            stored, metadata = tensors.load(self.path)
            if metadata["graph_sha256"] == self.manifest.graph_sha256 and metadata.get("owner", "") == self.owner:
                # The same round again: its update is made of what went into it, not of what came out.
                kept = "before" if metadata["round"] == self.round_identity else "after"
                found = {name.removeprefix(f"{kept}/"): v for name, v in stored.items() if name.startswith(f"{kept}/")}
                # What is not finite would spoil every later update of this device.
                if found and all(np.isfinite(value).all() for value in found.values()):
                    return check_parameters(found, self.manifest, name=str(self.path))
        return {}

    def keep(self, before: Parameters, after: Parameters) -> None:
        """Write both; call it before the update is written."""
        # A first round that kept nothing leaves no file.
        if not before and not after:
            return
        stored: dict[str, Array] = {f"before/{name}": value for name, value in before.items()}
        stored |= {f"after/{name}": value for name, value in after.items()}
        metadata = {"graph_sha256": self.manifest.graph_sha256, "round": self.round_identity}
        if self.owner:
            metadata["owner"] = self.owner
        if self.durable:
            tensors.save(self.path, stored, metadata)
        else:
            # In a simulation, where flushing each of a thousand files would take longer than training.
            self.path.write_bytes(b"".join(tensors.encode(stored, metadata)))
