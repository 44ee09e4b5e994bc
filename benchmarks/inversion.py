"""Reads an image off an update, or tries to: the attack of one ratio against each mode of privacy.

``python -m benchmarks.inversion`` trains a perceptron (64 → 64 → 10) on scikit-learn's digits as a device does, writes its
update, and attacks what the cloud holds of it. It prints one JSON line: for each case the cosine of the best guess to the image
that it is nearest to, less the mean of all images, and how many images are recovered (cosine above 0.95).

In a dense layer the gradient of a unit's weights is the input times the gradient of its bias, so their ratio is the input
(Phong et al., IEEE Transactions on Information Forensics and Security 2018, https://doi.org/10.1109/TIFS.2017.2787987).
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distributed_noise import distributed_means
from fedgrass.architecture import NewModel, new_bundle
from fedgrass.bundle import Bundle, Parameters, TensorDescription
from fedgrass.cloud.aggregator.privacy import Gaussian
from fedgrass.data import ArrayDataset
from fedgrass.data.arrays import Split
from fedgrass.data.digits import digits
from fedgrass.engines.sklearn import SklearnEngine, initial_parameters
from fedgrass.errors import PrivacyLimitError
from fedgrass.fitting import fit
from fedgrass.floors import Floors
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, UpdateTask, Upload
from fedgrass.secure.masks import SEED_BYTES, Expander, add_mask
from fedgrass.tensors import Array
from fedgrass.update.writer import encode_update

RECOVERED = 0.95
CLIP, NOISE = 1.0, 1.0
COHORT = 10
_NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)


def perceptron() -> Any:
    """Return the estimator: its first layer is dense and has a bias."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((64,), solver="sgd", learning_rate_init=0.1, momentum=0.0, alpha=0.0, random_state=1)


def first_bundle(folder: Path) -> Bundle:
    """Write the model that the round starts from."""
    return new_bundle(
        folder,
        NewModel(
            engine="sklearn",
            name="perceptron",
            parameters=initial_parameters(perceptron, features=64, classes=10, outputs=10),
            loss="sparse_categorical_crossentropy",
            batch_size=16,
            x=TensorDescription(name="x", shape=(64,), dtype="float32"),
            y=TensorDescription(name="y", shape=(), dtype="int32"),
            output=TensorDescription(name="y", shape=(10,), dtype="float32"),
        ),
    )


@dataclass(frozen=True)
class Device:
    """One with its images; ``update`` is what the cloud gets of it."""

    base: Bundle
    images: ArrayDataset

    def update(self, task: FitTask, encoding: UpdateTask, floors: Floors | None) -> Parameters:
        """Train and encode; raises `PrivacyLimitError` if the device declines."""
        if floors is not None:
            floors.require(self.images, task, self.base.manifest)
        announcement = _announced(self.base, task, encoding)
        engine = SklearnEngine(self.base, builder=perceptron)
        # Nothing is held back: a single example is for training.
        split = Split(self.images, self.images.take(0))
        fitted = fit(engine, self.base.manifest, split, announcement, "device")
        return encode_update(
            self.base.parameters(),
            fitted.parameters,
            fitted.header,
            encoding,
        ).tensors


def _announced(base: Bundle, task: FitTask, encoding: UpdateTask) -> Announcement:
    return Announcement(
        fleet="f",
        round=1,
        opened_at=_NOW,
        deadline=_NOW,
        base=Base.of(base.manifest, "f"),
        cohort=Cohort(salt="s"),
        fit=task,
        update=encoding,
        upload=Upload(bucket="bucket", prefix="updates/f/1/"),
    )


def guesses(difference: Mapping[str, Array]) -> Iterator[Array]:
    """Yield what each unit of the first layer says that the input was."""
    weights = next(value for value in difference.values() if value.shape == (64, 64))
    bias = next(value for value in difference.values() if value.shape == (64,))
    # A unit whose bias did not move saw no gradient, and its ratio says nothing.
    for unit in np.flatnonzero(bias):
        yield weights[:, unit].astype(np.float64) / bias[unit]


def nearest(difference: Mapping[str, Array], images: Array, centre: Array) -> tuple[float, int]:
    """Return the best cosine of any guess to any image, both less the mean of all, and how many images are recovered."""
    # Less the mean image: all digits look alike, and a cosine with the mean itself would be high.
    known = images.reshape(len(images), -1) - centre
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    best, found = 0.0, set()
    for guess in guesses(difference):
        shifted = guess - centre
        cosines = known @ shifted / np.linalg.norm(shifted)
        image = int(cosines.argmax())
        best = max(best, float(cosines[image]))
        if cosines[image] > RECOVERED:
            found.add(image)
    return best, len(found)


def mean_of(updates: list[Parameters]) -> Parameters:
    """Return the mean of differences."""
    return {name: np.mean([update[name] for update in updates], axis=0) for name in updates[0]}


def noised(updates: list[Parameters]) -> Parameters:
    """Return the mean with central noise, as the aggregator adds it to clipped updates."""
    noise = Gaussian(clip_norm=CLIP, noise_multiplier=NOISE, seed=secrets.token_bytes(32))
    shapes = {name: value.shape for name, value in updates[0].items()}
    total = np.sum([noise.grid.quantized(np.concatenate([v.ravel() for v in one.values()])) for one in updates], axis=0)
    return shaped(noise.noised_mean(total, len(updates)), shapes)


def shaped(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> Parameters:
    """Return a flat vector as parameters."""
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = flat[start : start + size].reshape(shape)
        start += size
    return found


def noised_by_helpers(updates: list[Parameters], folder: Path) -> tuple[Parameters, Parameters]:
    """Return the mean as the cloud gets it from helpers that add noise, and as one does to whom a helper tells its own noise."""
    flat = np.stack([np.concatenate([value.ravel() for value in one.values()]) for one in updates]).astype(np.float32)
    shapes = {name: value.shape for name, value in updates[0].items()}
    means = distributed_means(flat, folder, clip_norm=CLIP, noise_multiplier=NOISE, secure="3:1")
    return shaped(means[0], shapes), shaped(means[1], shapes)


def as_masked(update: Parameters) -> Parameters:
    """Return a device's masked upload as the cloud sees it: whole numbers modulo 2³² under a mask."""
    found, expander = {}, Expander(32)
    for name, value in update.items():
        numbers = np.rint(value.astype(np.float64).ravel() * 2**20).astype(np.int64).astype(np.uint32)
        add_mask(numbers, secrets.token_bytes(SEED_BYTES), expander)
        found[name] = numbers.view(np.int32).astype(np.float64).reshape(value.shape)
    return found


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Run every case."""
    everything, base = digits((64,)), first_bundle(folder)
    centre = everything.x.mean(axis=0).astype(np.float64)
    devices = [Device(base, ArrayDataset(everything.x[i::COHORT], everything.y[i::COHORT])) for i in range(COHORT)]
    one, plain = FitTask(max_examples=1, learning_rate=0.1), UpdateTask()
    bounded, noisy = UpdateTask(clip_norm=CLIP), UpdateTask(clip_norm=CLIP, noise_multiplier=NOISE)

    def attacked(difference: Parameters) -> dict[str, Any]:
        cosine, images = nearest(difference, everything.x, centre)
        return {"cosine": round(cosine, 4), "recovered": images > 0, "images": images}

    def alone(task: FitTask, encoding: UpdateTask, floors: Floors | None) -> dict[str, Any]:
        try:
            return attacked(devices[0].update(task, encoding, floors))
        except PrivacyLimitError as error:
            return {"cosine": None, "recovered": False, "images": 0, "declined": str(error)}

    def together(encoding: UpdateTask) -> list[Parameters]:
        return [device.update(one, encoding, None) for device in devices]

    with tempfile.TemporaryDirectory() as helpers:
        summed, told = noised_by_helpers(together(bounded), Path(helpers))
    few = FitTask(max_examples=16, learning_rate=0.1)
    return {
        "none, one example, no floors (before)": alone(one, plain, None),
        "none, one example, the device's floors": alone(one, plain, Floors()),
        "none, 16 examples in one step": alone(few, plain, Floors()),
        "none, all 180 examples": alone(FitTask(learning_rate=0.1), plain, Floors()),
        "central, the operator, one example, no floors": alone(one, bounded, None),
        "central, who sees the model, one example of 10 devices each": attacked(noised(together(bounded))),
        "local, one example, no floors": alone(one, noisy, None),
        "secure, a device's masked upload, one example, no floors": attacked(as_masked(together(plain)[0])),
        "secure, the sum of 10 devices with one example each, no floors": attacked(mean_of(together(plain))),
        "secure, the sum of 10 devices with 180 examples each": attacked(
            mean_of([device.update(FitTask(learning_rate=0.1), plain, Floors()) for device in devices])
        ),
        "secure and central, the job, the sum of 10 devices with one example each, no floors": attacked(
            mean_of(together(bounded))
        ),
        "secure and distributed, the sum of 10 devices with one example each, no floors": attacked(summed),
        "the same, by who knows one helper's noise": attacked(told),
    }


def main() -> int:
    """Print one JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"recovered_above": RECOVERED, "cases": measured(Path(folder) / "model")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
