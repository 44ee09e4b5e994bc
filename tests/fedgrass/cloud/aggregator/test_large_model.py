"""A model of more than 2 GB, beyond what a signed 32-bit number counts: through the command, file to file, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import ARCHITECTURE, PARAMETERS, Bundle, FileDescription, Manifest, TensorDescription
from tests.fedgrass.cloud.aggregator.conftest import header

SHAPES = {"embedding": (70_000, 8_192), "head": (3,)}  # the first alone has 2.3 GB
BYTES = 4 * (70_000 * 8_192 + 3)
SPECS = [(name, np.dtype("<f4"), shape) for name, shape in SHAPES.items()]


def write_sparse(path: Path, head: bytes, values: dict[int, float]) -> None:
    """Write zeros that take no room on the disk, but for the scalars at some places."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + BYTES)
        for place, value in values.items():
            file.seek(len(head) + 4 * place)
            file.write(np.float32(value).tobytes())


def large_bundle(folder: Path) -> Bundle:
    folder.mkdir()
    write_sparse(folder / PARAMETERS, tensors.encode_header(SPECS, {}), {1: 1.0, BYTES // 4 - 1: 2.0})
    (folder / ARCHITECTURE).write_bytes(b"{}")
    x = TensorDescription(name="x", shape=(1,), dtype="float32")
    unsealed = Manifest(
        name="large",
        batch_size=1,
        loss="mean_squared_error",
        x=x,
        y=x,
        output=x,
        parameters=tuple(TensorDescription(name=n, shape=shape, dtype="float32") for n, shape in SHAPES.items()),
        files={name: FileDescription(sha256="0" * 64, bytes=0) for name in (PARAMETERS, ARCHITECTURE)},
    )
    return Bundle.seal(folder, unsealed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_larger_than_two_gigabytes_is_aggregated_in_bounded_memory(tmp_path: Path) -> None:
    base = large_bundle(tmp_path / "base")
    last, beyond = BYTES // 4 - 1, (1 << 31) // 4 + 5
    updates = tmp_path / "updates"
    updates.mkdir()
    for thing, value, examples in [("a", 1.0, 100), ("b", 4.0, 200), ("nan", float("nan"), 300)]:
        head = tensors.encode_header(SPECS, header(base, thing, num_examples=examples).to_metadata())
        write_sparse(updates / f"{thing}.safetensors", head, {0: value, beyond: 2 * value, last: 3 * value})
    command = [sys.executable, "-c", "from fedgrass.cli import app; app()", "aggregate"]
    places = ["--base", str(base.folder), "--updates", str(updates), "--output", str(tmp_path / "new")]
    process = subprocess.Popen([*command, *places], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    assert "2 updates, 1 refused" in said
    made = Bundle.open(tmp_path / "new")
    with made.path(PARAMETERS).open("rb") as stream:
        data = tensors.read_header(stream, file_bytes=made.path(PARAMETERS).stat().st_size).data_offset
    found = np.memmap(made.path(PARAMETERS), np.float32, "r", data)
    mean = (100 * 1.0 + 200 * 4.0) / 300
    assert [float(found[place]) for place in (0, 1, beyond, last)] == pytest.approx([mean, 1, 2 * mean, 2 + 3 * mean])
    peak = usage.ru_maxrss * 1024
    print(f"model {BYTES / 1e9:.2f} GB, peak memory {peak / 1e9:.2f} GB")
    assert peak < 1.5 * BYTES
