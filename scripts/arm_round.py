"""A device's part in one round without a nucleus: train, write the update, admit the model that comes of it; one JSON line.

``python -m scripts.arm_round PARAMETERS.npz [OTHER.npz]`` writes what was trained to the first file, and says how far it is from
the second, as another machine wrote it. ``scripts/on_arm`` runs it on emulated 64-bit Arm, and then here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from fedgrass.bundle import Bundle
from fedgrass.data import ArrayDataset, Split
from fedgrass.edge.admission import judge
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.inference import write_bundle
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, UpdateTask, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.training import TrainingFiles, train

BUNDLE = Path(__file__).parents[1] / "examples" / "digits" / "bundle"


def examples() -> Split:
    """Noise about ten patterns: the same on every machine, to the bit, and something that can be learnt."""
    # From a hash and not a generator: NumPy promises no stream over versions and platforms.
    words = np.frombuffer(hashlib.shake_128(b"digits").digest(10 * 64 + 400 * 64), np.uint8).reshape(-1, 8, 8, 1)
    y = np.arange(400, dtype=np.int32) % 10
    x = (words[:10][y].astype(np.float32) * 3 + words[10:].astype(np.float32)) / 1024
    return Split(ArrayDataset(x[:320], y[:320]), ArrayDataset(x[320:], y[320:]))


def announcement(bundle: Bundle) -> Announcement:
    """What opens the round."""
    opened = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return Announcement(
        fleet="arm",
        round=1,
        opened_at=opened,
        deadline=opened + timedelta(hours=1),
        base=Base.of(bundle.manifest, "arm"),
        cohort=Cohort(salt="s"),
        fit=FitTask(epochs=5, learning_rate=0.2),
        update=UpdateTask(),
        upload=Upload(bucket="bucket", prefix=update_prefix("arm", 1)),
    )


def main() -> None:
    """Take part, print."""
    bundle, data = Bundle.open(BUNDLE), examples()
    engine = LiteRTEngine(bundle)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        trained = train(
            engine,
            bundle,
            data,
            announcement(bundle),
            "thing",
            TrainingFiles(folder / "update.safetensors", folder / "checkpoint.safetensors"),
        )
        seconds = time.monotonic() - began
        update = (folder / "update.safetensors").read_bytes()
        found = engine.get_parameters()
        # What the aggregator would publish, of this one update.
        new = write_bundle(bundle, found, folder / "new", version="1.1.0")
        verdict = judge(new, bundle, tolerance=0.05, load=lambda _manifest: data, open_engine=LiteRTEngine)
        said = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "seconds": round(seconds, 2),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            "update_bytes": len(update),
            "update_sha256": hashlib.sha256(update).hexdigest(),
            "examples": trained.num_examples,
            "admitted": {key: round(value, 4) for key, value in verdict.metrics.items() if "accuracy" in key},
        }
    flat = np.concatenate([value.ravel() for value in found.values()])
    np.savez(sys.argv[1], parameters=flat)
    if len(sys.argv) > 2:
        said["largest_difference"] = float(np.abs(np.load(sys.argv[2])["parameters"] - flat).max())
    print(json.dumps(said))


if __name__ == "__main__":
    main()
