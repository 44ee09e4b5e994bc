from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedgrass import tensors
from fedgrass.bundle import FileDescription, Manifest, Parameters, TensorDescription
from fedgrass.errors import ConfigurationError
from fedgrass.files import sha256_of
from fedgrass.protocol.messages import UpdateTask
from fedgrass.update import write_update
from fedgrass.update.feedback import ErrorFeedback
from fedgrass.update.reader import UpdateReader
from tests.fedgrass.update.conftest import DESCRIPTIONS, HEADER, draw_parameters


def manifest(graph: str = "b") -> Manifest:
    files = {n: FileDescription(sha256="a" * 64, bytes=1) for n in ("parameters.safetensors", "inference.tflite")}
    described = TensorDescription(name="x", shape=(1,), dtype="float32")
    return Manifest(
        name="m",
        batch_size=1,
        x=described,
        y=described,
        output=described,
        loss="mean_squared_error",
        parameters=DESCRIPTIONS,
        files={**files, "model.tflite": FileDescription(sha256=graph * 64, bytes=1)},
    )


def send(folder: Path, number: int, seed: int, codec: str = "topk:0.05+int4+zstd", graph: str = "b") -> Parameters:
    """One round's update from base 0 to parameters ``seed``, as the aggregator reads it."""
    path = folder / "update"
    feedback = ErrorFeedback(folder / "residual", manifest(graph), f"round-{number}")
    header = HEADER.model_copy(update={"round": number})
    write_update(path, draw_parameters(0), draw_parameters(seed), header, UpdateTask(codec=codec), feedback=feedback)
    with path.open("rb") as stream:
        reader = UpdateReader(stream, file_bytes=path.stat().st_size, parameters=DESCRIPTIONS)
        found = {d.name: np.empty(d.size, np.float32) for d in DESCRIPTIONS}
        for values in found.values():
            reader.fill(values)
    return {d.name: found[d.name].reshape(d.shape) for d in DESCRIPTIONS}


def left(folder: Path) -> Parameters:
    stored, _ = tensors.load(folder / "residual")
    return {d.name: stored[f"after/{d.name}"] for d in DESCRIPTIONS}


def test_what_was_sent_and_what_is_left_make_up_all_that_was_learnt(tmp_path: Path) -> None:
    base = draw_parameters(0)
    total: Parameters = {d.name: np.zeros(d.shape, np.float64) for d in DESCRIPTIONS}
    learnt: Parameters = {d.name: np.zeros(d.shape, np.float64) for d in DESCRIPTIONS}
    for number in range(1, 6):
        sent, local = send(tmp_path, number, seed=number), draw_parameters(number)
        for name in total:
            total[name] += sent[name]
            learnt[name] += local[name] - base[name]
    for name, rest in left(tmp_path).items():
        np.testing.assert_allclose(total[name] + rest, learnt[name], atol=2e-5)


def test_a_round_done_again_gives_the_same_update_and_adds_nothing_twice(tmp_path: Path) -> None:
    send(tmp_path, 1, seed=1)
    send(tmp_path, 2, seed=2)
    first, residual = sha256_of(tmp_path / "update"), left(tmp_path)
    for _ in range(3):
        send(tmp_path, 2, seed=2)
        assert sha256_of(tmp_path / "update") == first
        for name, value in left(tmp_path).items():
            np.testing.assert_array_equal(value, residual[name])


def test_a_residual_of_another_graph_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    expected = send(tmp_path / "fresh", 2, seed=2, graph="c")
    send(tmp_path, 1, seed=1)
    for name, value in send(tmp_path, 2, seed=2, graph="c").items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_damaged_residual_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    expected = send(tmp_path / "fresh", 2, seed=2)
    send(tmp_path, 1, seed=1)
    whole = (tmp_path / "residual").read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\0" * len(whole), whole[:-4] + b"\xff" * 4):
        (tmp_path / "residual").write_bytes(damaged)
        for name, value in send(tmp_path, 2, seed=2).items():
            np.testing.assert_array_equal(value, expected[name])


def test_an_exact_codec_sends_the_rest_and_leaves_nothing(tmp_path: Path) -> None:
    send(tmp_path, 1, seed=1, codec="float32")
    assert not (tmp_path / "residual").exists()
    send(tmp_path, 1, seed=1)
    rest = left(tmp_path)
    sent = send(tmp_path, 2, seed=2, codec="float32")
    again = send(tmp_path, 3, seed=2, codec="float32")
    for name in sent:
        np.testing.assert_array_equal(sent[name], again[name] + rest[name])


def test_clipping_holds_for_what_feedback_adds(tmp_path: Path) -> None:
    feedback = ErrorFeedback(tmp_path / "residual", manifest(), "1")
    zeros = {d.name: np.zeros(d.shape, np.float32) for d in DESCRIPTIONS}
    feedback.keep({}, {name: value + 9 for name, value in zeros.items()})
    later = ErrorFeedback(tmp_path / "residual", manifest(), "2")
    info = write_update(tmp_path / "u", zeros, zeros, HEADER, UpdateTask(codec="int8", clip_norm=1.0), feedback=later)
    assert info.norm == pytest.approx(1.0)
    assert np.sqrt(sum(float(np.square(v, dtype=np.float64).sum()) for v in left(tmp_path).values())) < 0.1


def test_noise_is_as_large_as_asked_different_each_time_and_leaves_no_trace(tmp_path: Path) -> None:
    base = {"w": np.zeros(100_000, np.float32)}
    local = {"w": np.ones(100_000, np.float32)}
    sent = []
    for name in ("a", "b"):
        feedback = ErrorFeedback(tmp_path / "residual", manifest(), "1")
        write_update(
            tmp_path / name,
            base,
            local,
            HEADER,
            UpdateTask(clip_norm=2.0, noise_multiplier=0.5, codec="int8"),
            feedback=feedback,
        )
        stored, _ = tensors.load(tmp_path / name)
        sent.append(stored["w"].astype(np.float64) * np.repeat(stored["w#scales"], 1024)[:100_000])
    assert not (tmp_path / "residual").exists()
    for values in sent:
        assert values.std() == pytest.approx(0.5 * 2.0, rel=0.02)
        assert values.mean() == pytest.approx(2.0 / np.sqrt(100_000), abs=0.02)
    assert abs(np.corrcoef(*sent)[0, 1]) < 0.02
    with pytest.raises(ConfigurationError, match="clip_norm"):
        write_update(tmp_path / "c", base, local, HEADER, UpdateTask(noise_multiplier=1.0))
