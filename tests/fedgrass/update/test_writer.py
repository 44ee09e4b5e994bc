from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedgrass.errors import BundleError, DivergedError, UpdateError
from fedgrass.files import sha256_of
from fedgrass.protocol.messages import UpdateTask
from fedgrass.update import write_update
from tests.fedgrass.update.conftest import HEADER, draw_parameters


def test_the_safetensors_package_reads_the_difference(written: Callable[..., Path]) -> None:
    base, local = draw_parameters(0), draw_parameters(1)
    found = load_file(written())
    assert found.keys() == base.keys()
    for name in base:
        np.testing.assert_array_equal(found[name], local[name] - base[name])


def test_the_same_training_gives_the_same_bytes_and_the_digest_that_is_reported(tmp_path: Path) -> None:
    first = write_update(tmp_path / "a", draw_parameters(0), draw_parameters(1), HEADER)
    again = write_update(tmp_path / "b", draw_parameters(0), draw_parameters(1), HEADER)
    assert first == again
    assert first.sha256 == sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")
    assert first.bytes == (tmp_path / "a").stat().st_size


def test_the_norm_is_that_of_the_difference(tmp_path: Path) -> None:
    base, local = draw_parameters(0), draw_parameters(1)
    info = write_update(tmp_path / "u", base, local, HEADER)
    flat = np.concatenate([(local[n] - base[n]).astype(np.float64).ravel() for n in base])
    assert info.norm == pytest.approx(float(np.linalg.norm(flat)), rel=1e-12)


def test_clipping_scales_a_long_difference_to_the_bound_and_leaves_a_short_one_alone(tmp_path: Path) -> None:
    base, local = draw_parameters(0), draw_parameters(1)
    clipped = write_update(tmp_path / "clipped", base, local, HEADER, UpdateTask(clip_norm=0.5))
    assert clipped.norm == pytest.approx(0.5)
    stored = load_file(tmp_path / "clipped")
    assert math.sqrt(sum(float(np.square(v).sum()) for v in stored.values())) == pytest.approx(0.5, rel=1e-6)
    plain = write_update(tmp_path / "plain", base, local, HEADER)
    assert write_update(tmp_path / "wide", base, local, HEADER, UpdateTask(clip_norm=1e6)).sha256 == plain.sha256


def test_float16_halves_the_tensors_and_holds_what_would_overflow(tmp_path: Path) -> None:
    base = {"w": np.zeros(4, np.float32)}
    local = {"w": np.array([1e6, -1e6, 0.5, 1e-9], np.float32)}
    write_update(tmp_path / "u", base, local, HEADER, UpdateTask(codec="float16"))
    np.testing.assert_array_equal(load_file(tmp_path / "u")["w"], np.array([65504, -65504, 0.5, 0], np.float16))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_training_writes_nothing(tmp_path: Path, bad: float) -> None:
    local = draw_parameters(1)
    local["dense/bias"][3] = bad
    with pytest.raises(DivergedError, match="not finite"):
        write_update(tmp_path / "u", draw_parameters(0), local, HEADER)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    base = draw_parameters(0)
    with pytest.raises(BundleError, match="scale"):
        write_update(tmp_path / "u", base, {n: v for n, v in base.items() if n != "scale"}, HEADER)
    with pytest.raises(BundleError, match="dense/bias"):
        write_update(tmp_path / "u", base, base | {"dense/bias": np.zeros(8, np.float32)}, HEADER)
    with pytest.raises(BundleError, match="same floats"):
        write_update(tmp_path / "u", {"n": np.zeros(1, np.int32)}, {"n": np.zeros(1, np.int32)}, HEADER)


def test_an_unknown_codec_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UpdateError, match="morse") as raised:
        write_update(tmp_path / "u", draw_parameters(0), draw_parameters(1), HEADER, UpdateTask(codec="morse"))
    assert raised.value.code == "unknown_codec"
