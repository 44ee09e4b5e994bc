"""The application's models of the digits: bytes and accuracy of float, int8 and pruned, and ai-edge-quantizer's beside them.

``python -m benchmarks.inference`` trains the example centrally for five epochs, and prints one JSON line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedgrass.bundle import INFERENCE, INFERENCE_INT8, Bundle
from fedgrass.data import ArrayDataset
from fedgrass.engines.base import FitSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.inference import inference_accuracy, write_bundle
from fedgrass.local.demo.data import digits
from fedgrass.quantization import quantized

BASE = Path(__file__).parents[1] / "examples" / "digits" / "bundle"
SPARSITY = 0.3


def measured(bundle: Bundle, kept: ArrayDataset) -> dict[str, dict[str, float]]:
    """Return bytes and accuracy of each of the bundle's models."""
    accuracy = inference_accuracy(bundle, kept)
    return {name: {"bytes": bundle.manifest.files[name].bytes, "accuracy": accuracy[name]} for name in accuracy}


def peer(bundle: Bundle, kept: ArrayDataset, folder: Path) -> dict[str, Any] | None:
    """Return the same of ai-edge-quantizer's dynamic-range model, and the seconds it took with its import."""
    began = time.perf_counter()
    try:
        from ai_edge_quantizer import quantizer, recipe
    except ImportError:
        print("ai-edge-quantizer is not installed: pip install 'fedgrass[authoring]'", file=sys.stderr)
        return None
    # The quantizer prints; standard output is for the one line of JSON.
    with contextlib.redirect_stdout(sys.stderr):
        model = quantizer.Quantizer(str(bundle.path(INFERENCE)), recipe.dynamic_wi8_afp32()).quantize().quantized_model
    seconds = time.perf_counter() - began
    written = write_bundle(bundle, bundle.parameters(), folder, version="1.1.0")
    written.path(INFERENCE_INT8).write_bytes(model)
    found = measured(Bundle.seal(folder, written.manifest), kept)[INFERENCE_INT8]
    return {**found, "seconds": round(seconds, 3)}


def main() -> None:
    """Train, write, measure, print."""
    base = Bundle.open(BASE)
    data = digits(["device-1"], shape=base.manifest.x.shape, seed=0)
    print("training", file=sys.stderr)
    trained = LiteRTEngine(base).fit(data.pooled, FitSettings(epochs=5, learning_rate=0.2)).parameters
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        quantized(base.path(INFERENCE).read_bytes())
        seconds = time.perf_counter() - began
        dense = write_bundle(base, trained, Path(folder) / "dense", version="1.1.0")
        pruned = write_bundle(base, trained, Path(folder) / "pruned", version="1.1.0", sparsity=SPARSITY)
        print("evaluating", file=sys.stderr)
        figures = measured(dense, data.kept)
        theirs = peer(dense, data.kept, Path(folder) / "peer")
        sparse = measured(pruned, data.kept)
    plain, small = figures[INFERENCE], figures[INFERENCE_INT8]
    result = {
        "examples": len(data.kept),
        "float": plain,
        "int8": {**small, "seconds": round(seconds, 3)},
        "int8_ratio": round(small["bytes"] / plain["bytes"], 4),
        "int8_points_lost": round(100 * (plain["accuracy"] - small["accuracy"]), 3),
        "sparsity": SPARSITY,
        "pruned_accuracy": {name: entry["accuracy"] for name, entry in sparse.items()},
        "ai_edge_quantizer": theirs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
