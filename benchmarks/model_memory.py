"""What a whole round takes of a device's memory by the model's size and the codec: ours, Keras and PyTorch; one JSON line.

``python -m benchmarks.model_memory`` trains dense nets, each in a process of its own that reads the base, trains two epochs,
keeps a checkpoint and writes the update. The figure is the peak of resident memory over what the process had after its imports,
as a multiple of the parameters' size; files that are mapped count. Keras and PyTorch take the same steps in memory: a copy of
the base, two epochs, the difference. ``--sizes`` and ``--codecs`` choose; PyTorch is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from fedgrass.tensors import Array

WIDTHS = {"0.04M": (64, 512), "1M": (1000, 1000), "4M": (2000, 2000), "17M": (4096, 4096), "50M": (7000, 7000)}
"""Widths of the net's two inner layers."""

INPUTS, CLASSES, BATCH, EXAMPLES, EPOCHS = 64, 10, 32, 64, 2
MB = 1_000_000


def main() -> None:
    """Measure each size with each codec and each peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--codecs", nargs="+", default=["float32", "float16", "int8", "int4", "topk:0.1+int4+zstd"])
    parser.add_argument("--one", nargs=3, metavar=("WHO", "BUNDLE", "CODEC"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(RUNS[wanted.one[0]](Path(wanted.one[1]), wanted.one[2])))
        return
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in wanted.sizes:
            bundle = export(WIDTHS[size], Path(scratch) / size)
            rows = {f"fedgrass {codec}": apart("fedgrass", bundle, codec) for codec in wanted.codecs}
            rows |= {who: apart(who, bundle, "float32") for who in ("keras", "torch")}
            found[size] = rows
            print(size, json.dumps(rows), file=sys.stderr, flush=True)
    print(json.dumps(found))


def apart(who: str, bundle: Path, codec: str) -> dict[str, float] | str:
    """Measure in a process of its own."""
    argv = [sys.executable, "-m", "benchmarks.model_memory", "--one", who, str(bundle), codec]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        # A row says what went wrong instead, such as a lack of memory, and the rest is still measured.
        return done.stderr.strip().splitlines()[-1][:120]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def export(widths: tuple[int, int], folder: Path) -> Path:
    """Make the bundle, in a process of its own: TensorFlow's memory is not this one's."""
    source = folder.parent / "net.py"
    source.write_text(
        "import keras\n"
        "def build_model():\n"
        f"    layers = [keras.layers.Dense(w, activation='relu') for w in {widths}]\n"
        f"    return keras.Sequential([keras.Input(({INPUTS},)), *layers, keras.layers.Dense({CLASSES}, activation='softmax')])\n"
        f"EXPORT = {{'batch_size': {BATCH}, 'loss': 'sparse_categorical_crossentropy'}}\n"
    )
    argv = [
        sys.executable,
        "-c",
        "from fedgrass.cli import app; app()",
        "model",
        "export",
        str(source),
        "--output",
        str(folder),
    ]
    subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    return folder


def examples() -> tuple[Array, Array]:
    """Made-up data."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(EXAMPLES, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)


def measured(run: Callable[[], object], parameters: int) -> dict[str, float]:
    """Run, and compare the process's peak with what it had before."""
    # After the imports: the interpreter and the libraries are not what a model costs.
    idle = psutil.Process().memory_info().rss
    run()
    status = Path("/proc/self/status").read_text().splitlines()
    # VmHWM: the kernel's own record of the peak, which no sampling can miss.
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return {
        "parameters_mb": round(4 * parameters / MB, 1),
        "idle_mb": round(idle / MB, 1),
        "peak_mb": round(peak / MB, 1),
        "times_parameters": round((peak - idle) / (4 * parameters), 2),
    }


def of_fedgrass(folder: Path, codec: str) -> dict[str, float]:
    """A device's part in a round."""
    import fedgrass
    from fedgrass.bundle import Bundle
    from fedgrass.data import ArrayDataset, Split

    bundle, dataset = Bundle.open(folder), ArrayDataset(*examples())
    # What the trainer's child has imported when it opens the model.
    import fedgrass.engines.litert
    import fedgrass.update.writer

    with tempfile.TemporaryDirectory() as scratch:

        def run() -> object:
            split, update = Split(dataset, dataset.take(0)), Path(scratch) / "update.safetensors"
            return fedgrass.train(bundle, split, update, thing="t", epochs=EPOCHS, learning_rate=0.01, codec=codec)

        return measured(run, bundle.manifest.parameter_count)


def _widths(folder: Path) -> tuple[int, int]:
    return WIDTHS[folder.name]


def of_keras(folder: Path, _codec: str) -> dict[str, float]:
    """Keras on the same net and data."""
    import keras

    x, y = examples()
    first, second = _widths(folder)
    # Whatever TensorFlow allocates at its first use counts as idle, not as the model's.
    keras.backend.clear_session()

    def run() -> object:
        layers = [keras.layers.Dense(width, activation="relu") for width in (first, second)]
        model = keras.Sequential([keras.Input((INPUTS,)), *layers, keras.layers.Dense(CLASSES, activation="softmax")])
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
        base = model.get_weights()
        model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        return [after - before for after, before in zip(model.get_weights(), base, strict=True)]

    return measured(run, _parameters(first, second))


def of_torch(folder: Path, _codec: str) -> dict[str, float]:
    """PyTorch on the same net and data."""
    import torch
    from torch import nn

    inputs, labels = (torch.from_numpy(array) for array in examples())
    first, second = _widths(folder)

    def run() -> object:
        model = nn.Sequential(
            nn.Linear(INPUTS, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, CLASSES)
        )
        base = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(EPOCHS):
            for begin in range(0, EXAMPLES, BATCH):
                optimizer.zero_grad()
                output = model(inputs[begin : begin + BATCH])
                nn.functional.cross_entropy(output, labels[begin : begin + BATCH].long()).backward()
                optimizer.step()
        return {name: value - base[name] for name, value in model.state_dict().items()}

    return measured(run, _parameters(first, second))


def _parameters(first: int, second: int) -> int:
    return (INPUTS + 1) * first + (first + 1) * second + (second + 1) * CLASSES


RUNS = {"fedgrass": of_fedgrass, "keras": of_keras, "torch": of_torch}

if __name__ == "__main__":
    main()
