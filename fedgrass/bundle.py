"""The model bundle: one immutable folder that holds a model for training, for inference, and its parameters.

======================== =====================================================================================
``model.tflite``         training graph, LiteRT built-in operators only (signatures below)
``parameters.safetensors``  the trainable parameters, in the manifest's order
``inference.tflite``     float model for the application
``inference_int8.tflite``  quantized model for the application (optional)
``model.json``           the manifest: everything needed to feed the graph, and a digest of each file
======================== =====================================================================================

A model of another engine than LiteRT has ``architecture.json`` in place of the three ``.tflite`` files (`fedgrass.architecture`),
and may have ``builder.zip``: the code that builds it, which a device runs only if its settings name the digest
(`fedgrass.builder_archive`).

Signatures of ``model.tflite`` (B is the fixed batch size; parameters are called ``p0 … pN`` in the manifest's order):

- ``train(x, y, sample_weight, learning_rate, proximal_mu, clip_norm) -> loss``: one optimizer step on one batch. Of several
  inputs or outputs ``x`` and ``y`` [B, values] hold all, as float32 (`fedgrass.interface`).
  ``sample_weight`` [B] float32 is what each example's loss is times, and 0 for the padding of a short last batch; the sum is
  divided by the number of weights above 0 (by their sum in graphs from before ``loss_mean``).
  The three scalars are float32, and 0 switches
  the last two off.
- ``train_plain(x, y, sample_weight, learning_rate) -> loss``: the same with both off, at less cost (optional).
- ``evaluate(x, y, sample_weight) -> loss, correct, weight, output``: weighted sums over the batch, and what the loss takes
  for each example: logits of a classifier. Graphs from before this lack ``output``.
- ``infer(x) -> y``.
- ``read_parameters() -> p0 …``, ``write_parameters(p0 …) -> ok``. Resource variables start uninitialised: write first.
- ``begin_round() -> ok``: takes the present parameters as the proximal term's anchor and zeroes the optimizer's state.
  Where the model has Dropout: ``begin_round(seed)``, int32, from which and the step's number the masks are drawn.
- ``begin_plain([seed]) -> ok``: the same without an anchor, which is as large as the parameters; ``train_plain`` needs none
  (optional). Where there are neither masks nor an optimizer's state, nothing is to be begun for ``train_plain``.
- ``read_optimizer() -> s0 …`` and ``write_optimizer(s0 …) -> ok``, where the optimizer has state: for checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedgrass.bounds import MAX_HEADER_BYTES
from fedgrass.errors import BundleError
from fedgrass.files import sha256_of, write_atomically
from fedgrass.interface import Head as Head
from fedgrass.interface import TensorDescription as TensorDescription
from fedgrass.manifest import ARCHITECTURE as ARCHITECTURE
from fedgrass.manifest import BUILDER as BUILDER
from fedgrass.manifest import GRAPH as GRAPH
from fedgrass.manifest import INFERENCE as INFERENCE
from fedgrass.manifest import INFERENCE_INT8 as INFERENCE_INT8
from fedgrass.manifest import MANIFEST as MANIFEST
from fedgrass.manifest import MAX_MANIFEST_BYTES as MAX_MANIFEST_BYTES
from fedgrass.manifest import PARAMETERS as PARAMETERS
from fedgrass.manifest import Constant as Constant
from fedgrass.manifest import DataDescription as DataDescription
from fedgrass.manifest import FileDescription as FileDescription
from fedgrass.manifest import Manifest as Manifest
from fedgrass.manifest import Native as Native
from fedgrass.manifest import SelfTest as SelfTest
from fedgrass.manifest import Statistic as Statistic
from fedgrass.manifest import parse_manifest as parse_manifest
from fedgrass.objectives import Loss as Loss
from fedgrass.objectives import LossOptions as LossOptions
from fedgrass.objectives import Optimizer as Optimizer
from fedgrass.objectives import OptimizerName as OptimizerName
from fedgrass.objectives import Schedule as Schedule

if TYPE_CHECKING:
    from fedgrass.tensors import Array

Parameters = dict[str, "Array"]
"""Parameter tensors by name, in the manifest's order."""


class InitialParameters(dict[str, "Array"]):
    """A model's first parameters, with what its engine knows of them: which are statistics, and what else stays ``local``."""

    def __init__(
        self, parameters: Parameters, statistics: dict[str, Statistic], *, local: tuple[str, ...] = ()
    ) -> None:
        super().__init__(parameters)
        self.statistics = statistics
        self.local = local


class Bundle:
    """A model bundle in a folder. Opening checks the manifest; ``verify`` checks every byte."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the manifest of the bundle in ``folder``.

        Raises
        ------
        BundleError
            If there is none, or it is not valid.

        Examples
        --------
        >>> import fedgrass
        >>> from fedgrass.data.digits import digits_bundle
        >>> bundle = fedgrass.open_bundle(digits_bundle())
        >>> bundle.manifest.name, bundle.manifest.x.shape, sorted(bundle.parameters())[:1]
        ('digits', (8, 8, 1), ['conv/bias'])
        """
        path = folder / MANIFEST
        try:
            with path.open("rb") as stream:
                # One byte more than allowed, so that a file that is too long is seen as such and never read whole.
                content = stream.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); is {folder} a model bundle?") from error
        return cls(folder, parse_manifest(content, name=str(path)))

    @classmethod
    def seal(cls, folder: Path, manifest: Manifest) -> Bundle:
        """Write ``model.json`` last, with the digests of the files that lie in ``folder``."""
        # Only files that a bundle may have: what else lies in the folder is not part of it.
        known = (GRAPH, ARCHITECTURE, BUILDER, PARAMETERS, INFERENCE, INFERENCE_INT8)
        present = [name for name in known if (folder / name).exists()]
        files = {
            name: FileDescription(sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size)
            for name in present
        }
        sealed = manifest.model_copy(update={"files": files})
        # Last: a folder without a manifest is not a bundle, so one that was broken off is never taken for whole.
        write_atomically(folder / MANIFEST, sealed.to_json())
        return cls.open(folder)

    def path(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.folder / name

    def verify(self) -> None:
        """Compare each file with the manifest's size and digest.

        Raises
        ------
        BundleError
            Naming the first file that differs.
        """
        for name, expected in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path}: missing; the manifest names it. Fetch the bundle again")
            # The size first, which costs nothing.
            if path.stat().st_size != expected.bytes or sha256_of(path) != expected.sha256:
                raise BundleError(
                    f"{path}: differs from the manifest's digest {expected.sha256[:12]}…. Fetch the bundle again"
                )

    def parameters(self) -> Parameters:
        """Read the parameters, checked against the manifest, in its order."""
        return load_parameters(self.folder / PARAMETERS, self.manifest)

    def stored_parameters(self) -> Mapping[str, Array]:
        """Return the parameters as `parameters` does, but each in memory only while somebody holds it."""
        from fedgrass.mapped_tensors import MappedTensors

        mapped = MappedTensors(self.folder / PARAMETERS, max_bytes=_parameter_file_bytes(self.manifest))
        check_parameters(mapped, self.manifest, name=str(self.folder / PARAMETERS))
        return mapped


def load_parameters(path: Path, manifest: Manifest) -> Parameters:
    """Read a parameter file for this model.

    Raises
    ------
    TensorFileError
        If the file is malformed.
    BundleError
        If it holds other tensors than the manifest names.
    """
    # Here and below and not above: heartbeat and model deployer read manifests, and live without NumPy.
    from fedgrass import tensors

    loaded, _ = tensors.load(path, max_bytes=_parameter_file_bytes(manifest))
    return check_parameters(loaded, manifest, name=str(path))


def _parameter_file_bytes(manifest: Manifest) -> int:
    return manifest.parameter_bytes + MAX_HEADER_BYTES + 8


def check_parameters(parameters: Mapping[str, Array], manifest: Manifest, *, name: str = "parameters") -> Parameters:
    """Check parameters against a model, and put them in its order.

    Parameters
    ----------
    parameters
        Arrays by name.
    manifest
        Of the model.
    name
        What they are called in an error.

    Returns
    -------
    dict
        The same arrays, in the manifest's order.

    Raises
    ------
    BundleError
        If a name, shape or dtype differs.
    """
    import numpy as np

    expected = {p.name: p for p in manifest.parameters}
    if parameters.keys() != expected.keys():
        odd = sorted(parameters.keys() ^ expected.keys())[:3]
        raise BundleError(
            f"{name}: parameters differ from those of model {manifest.name!r} (for example {', '.join(odd)})"
        )
    for key, description in expected.items():
        found = parameters[key]
        if found.shape != description.shape or found.dtype != np.dtype(description.dtype):
            raise BundleError(
                f"{name}: {key!r} is {found.dtype}{list(found.shape)}, the model has {description.dtype}{list(description.shape)}"
            )
    # In the manifest's order, which the graph's inputs p0, p1, … follow.
    return {key: parameters[key] for key in expected}
