"""What the child does between rounds: compare live data, and the model's scores on them, with the fleet's profile."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from components.trainer.task import Result, Watched
from components.trainer.workspace import Workspace
from fedgrass.bundle import INFERENCE, Bundle
from fedgrass.edge.score import Score
from fedgrass.engines.base import Dataset
from fedgrass.inference import Application
from fedgrass.profile.drift import Reference, Scores, compared
from fedgrass.profile.features import label_names
from fedgrass.protocol.profile import Profile
from fedgrass.tensors import Array

_SCORED = 500
"""Examples that the model is run on: one at a time, as applications do."""
_AT_ONCE = 16
_TRUE = 0.5


def compare(watched: Watched, model: Bundle, place: Workspace) -> Result:
    """Compare live data; raises what reading them and the profile does. Nothing is found where the profile is another model's."""
    if model.manifest.graph_sha256 != watched.profile.graph_sha256:
        return Result(status="done")
    profile = place.profile(watched.profile, watched.bucket)
    settings = place.task.settings
    live = place.live(model, settings.drift_rows, settings.drift_path)
    reference = Reference.of(profile, model.manifest)
    drift = compared(
        place.paced(live),
        model.manifest,
        reference,
        scored=lambda: _scores(model, profile, live, place),
        kept=place.task.drift,
        key=watched.profile.sha256,
    )
    return Result(status="done", drift=drift)


def _scores(model: Bundle, profile: Profile, live: Dataset, place: Workspace) -> Scores | None:
    """Return the scores of the newest examples by group; None of a model without scores, or that LiteRT does not run."""
    manifest = model.manifest
    if INFERENCE not in manifest.files:
        return None
    score = Score.read(place.store.folder / "active") if manifest.anomaly_quantile is not None else None
    if score is not None and score.threshold is not None:
        expected = np.array([score.quantile, 1 - score.quantile])
        found = np.zeros(2)
        for x, output in _outputs(model, live, place):
            beyond = int(score.alarms(score.of_examples(x, output)).sum())
            found += [len(x) - beyond, beyond]
        return Scores(expected, found)
    classes = len(label_names(manifest))
    # One label an example: of several at once the counts are no shares of anything.
    one = manifest.loss == "sparse_categorical_crossentropy" or (
        manifest.loss == "binary_crossentropy" and manifest.y.size == 1
    )
    if manifest.outputs or not one or classes != len(profile.labels) or not classes:
        return None
    found = np.zeros(classes)
    for _, output in _outputs(model, live, place):
        row = output.reshape(len(output), -1)
        chosen = row.argmax(axis=1) if row.shape[1] > 1 else (row[:, 0] > _TRUE).astype(np.intp)
        found += np.bincount(chosen, minlength=classes)
    return Scores(np.array([label.count for label in profile.labels]), found)


def _outputs(model: Bundle, live: Dataset, place: Workspace) -> Iterator[tuple[Array, Array]]:
    """Yield the newest whole examples and what the application's model gives for them, some at a time."""
    infer = Application(model.path(INFERENCE), model.manifest)
    skip = max(0, len(live) - _SCORED)
    for batch in live.batches(_AT_ONCE):
        x = np.asarray(batch.x)[max(0, skip) :]
        skip -= len(batch.x)
        whole = np.array([np.isfinite(np.asarray(example, np.float64)).all() for example in x], bool)
        # A missing value has the application's own filling, of which nothing is known here.
        x = x[whole].astype(model.manifest.x.dtype)
        if len(x):
            yield x, np.concatenate([infer(example[np.newaxis]) for example in x])
        place.after_batch(0, 0)
