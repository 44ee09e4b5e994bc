"""A round's peak of memory, as a multiple of the model: what was read and written is not kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import model_memory

if sys.platform != "linux":
    pytest.skip("peaks are read from /proc", allow_module_level=True)


@pytest.mark.parametrize("codec", ["float32", "int8"])
def test_a_round_takes_less_than_eight_times_the_models_size(codec: str, tmp_path: Path) -> None:
    # Twelve times before; five and a half here, as something of the 16 MB model does not grow with its parameters.
    bundle = model_memory.export(model_memory.WIDTHS["4M"], tmp_path / "4M")
    found = model_memory.apart("fedgrass", bundle, codec)
    assert isinstance(found, dict), found
    assert found["times_parameters"] < 8
