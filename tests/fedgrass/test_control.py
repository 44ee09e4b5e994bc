"""What SCAFFOLD and FedDyn keep on a device: exact in the steps, the same again after a kill, nothing that was not checked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass import tensors
from fedgrass.bundle import Bundle, Parameters
from fedgrass.control import STEP_LENGTH, Control, ControlFiles, fetch_control, server_control, step_length
from fedgrass.data import ArrayDataset, split
from fedgrass.engines.base import FitSettings, Hooks
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError, FedgrassError, TensorFileError
from fedgrass.files import sha256_of
from fedgrass.objectives import Optimizer, Schedule
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, ServerState, Upload
from fedgrass.protocol.names import model_prefix, update_prefix
from fedgrass.tensors import Array
from fedgrass.training import Trained, TrainingFiles, train
from tests.components.trainer.place import FakeS3
from tests.fedgrass.edge import digits

FLEET = "f"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(digits.BUNDLE)


def drawn(bundle: Bundle, seed: int, size: float = 0.01) -> Parameters:
    rng = np.random.default_rng(seed)
    return {n: (size * rng.normal(size=v.shape)).astype(np.float32) for n, v in bundle.parameters().items()}


def server_file(path: Path, bundle: Bundle, control: Mapping[str, Array], **metadata: str) -> Path:
    flat = np.concatenate([value.ravel() for value in control.values()])
    belongs = {"strategy": "scaffold", "parameters_sha256": bundle.manifest.parameters_sha256}
    tensors.save(path, {"control": flat}, {**belongs, **metadata})
    return path


def announcement(bundle: Bundle, number: int = 1, *, state: str | None = "scaffold", **fit: Any) -> Announcement:
    opened = datetime(2026, 1, 1, tzinfo=timezone.utc)
    left = None if state is None else ServerState(strategy=state, sha256="0" * 64)
    task = FitTask.model_validate({"epochs": 2, "learning_rate": 0.2, "control": "scaffold", **fit})
    return Announcement(
        fleet=FLEET,
        round=number,
        opened_at=opened,
        deadline=opened + timedelta(hours=1),
        base=Base.of(bundle.manifest, FLEET, left),
        cohort=Cohort(salt="s"),
        fit=task,
        upload=Upload(bucket="bucket", prefix=update_prefix(FLEET, number)),
    )


def run(
    folder: Path, bundle: Bundle, announced: Announcement, server: Path | None = None, hooks: Hooks | None = None
) -> tuple[Trained, dict[str, Array]]:
    """Train a round, and return the update's values."""
    x, y = digits.examples()
    files = TrainingFiles(
        folder / "update", folder / "checkpoint", folder / "residual", ControlFiles(folder / "control", server)
    )
    data = split(x[:100], y[:100], validation_fraction=0.2, seed=0)
    found = train(lambda: LiteRTEngine(bundle), bundle, data, announced, "t", files, hooks=hooks)
    return found, tensors.load(folder / "update")[0]


def test_litert_adds_the_correction_to_each_steps_gradient_as_exactly_as_float32_has_it(bundle: Bundle) -> None:
    x, y = digits.examples()
    one, rate = ArrayDataset(x[:16], y[:16]), 0.2
    correction = drawn(bundle, 1, size=0.5)
    engine = LiteRTEngine(bundle)
    base = engine.get_parameters()
    for mu in (0.0, 0.3):
        wanted = base
        for _ in range(4):  # plain steps, with the correction and the proximal term taken off by hand
            engine.set_parameters(wanted)
            stepped = engine.fit(one, FitSettings(learning_rate=rate)).parameters
            wanted = {
                n: (stepped[n] - rate * (correction[n] + mu * (wanted[n].astype(np.float64) - base[n]))).astype(
                    np.float32
                )
                for n in base
            }
        engine.set_parameters(base)
        added = FitSettings(epochs=4, learning_rate=rate, proximal_mu=mu, correction=correction)
        found = engine.fit(one, added).parameters
        for name in base:
            np.testing.assert_allclose(found[name], wanted[name], rtol=2e-5, atol=2e-6)
        engine.set_parameters(base)
    again = engine.fit(one, FitSettings(learning_rate=rate)).parameters
    plain = LiteRTEngine(bundle).fit(one, FitSettings(learning_rate=rate)).parameters
    assert all(np.array_equal(again[name], plain[name]) for name in base), "what comes next is as if nothing was added"


def test_a_devices_control_variate_becomes_its_mean_gradient_and_costs_a_plain_first_round(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    _, plain = run(tmp_path / "plain", bundle, announcement(bundle, control=None))
    trained, first = run(tmp_path, bundle, announcement(bundle, state=None))
    assert all(np.array_equal(first[name], plain[name]) for name in first)
    length = trained.metrics[STEP_LENGTH]
    assert length == pytest.approx(0.2 * trained.metrics["steps"])
    kept = tensors.load(tmp_path / "control")[0]
    for name, value in first.items():
        np.testing.assert_allclose(kept[f"after/{name}"], -value / np.float32(length), rtol=1e-6)


def test_a_round_that_is_done_again_gives_the_same_bytes_and_the_next_one_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    server = server_file(tmp_path / "server", bundle, drawn(bundle, 2))
    run(tmp_path, bundle, announcement(bundle, 1), server)
    once, values = run(tmp_path, bundle, announcement(bundle, 2), server)
    kept = (tmp_path / "control").read_bytes()
    (tmp_path / "checkpoint").unlink()
    again, _ = run(tmp_path, bundle, announcement(bundle, 2), server)
    assert (again.info.sha256, (tmp_path / "control").read_bytes()) == (once.info.sha256, kept)
    (tmp_path / "lost").mkdir()
    _, plain = run(tmp_path / "lost", bundle, announcement(bundle, 2), server)
    assert any(not np.array_equal(values[name], plain[name]) for name in values), "one that has none takes plain steps"


def test_a_training_that_is_killed_between_epochs_goes_on_to_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(_state: object) -> None:
        raise Killed

    server = server_file(tmp_path / "server", bundle, drawn(bundle, 2))
    found = []
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, bundle, announcement(bundle, 1), server)
        if name == "broken":
            with pytest.raises(Killed):
                run(tmp_path / name, bundle, announcement(bundle, 2), server, Hooks(after_epoch=kill))
        found.append(run(tmp_path / name, bundle, announcement(bundle, 2), server)[0].info.sha256)
    assert found[0] == found[1]


@pytest.mark.parametrize("how", ["damaged", "another graph", "another strategy", "not finite", "let go of"])
def test_what_is_lost_or_anothers_counts_as_none(bundle: Bundle, tmp_path: Path, how: str) -> None:
    path, server = tmp_path / "control", server_file(tmp_path / "server", bundle, drawn(bundle, 2))
    values = {f"after/{name}": value for name, value in drawn(bundle, 3).items()}
    metadata = {"graph_sha256": bundle.manifest.graph_sha256, "round": "before", "owner": "scaffold"}
    announced = announcement(bundle)

    def correction() -> Parameters | None:
        found = Control.of(announced, bundle.manifest, ControlFiles(path, server), "now")
        assert found is not None
        return found.correction

    tensors.save(path, values, metadata)
    assert correction() is not None
    if how == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "another graph":
        tensors.save(path, values, {**metadata, "graph_sha256": "0" * 64})
    elif how == "another strategy":
        tensors.save(path, values, {**metadata, "owner": "feddyn"})
    elif how == "not finite":
        next(iter(values.values())).flat[0] = np.nan
        tensors.save(path, values, metadata)
    else:
        announced = announcement(bundle, state="fedadam")
    assert correction() is None


def test_the_fleets_control_variate_is_taken_only_if_it_is_this_bases(bundle: Bundle, tmp_path: Path) -> None:
    good = drawn(bundle, 4)
    found = server_control(server_file(tmp_path / "good", bundle, good), bundle.manifest)
    assert all(np.array_equal(found[name], value) for name, value in good.items())
    with pytest.raises(BundleError, match="not the control variate"):
        server_control(server_file(tmp_path / "a", bundle, good, parameters_sha256="0" * 64), bundle.manifest)
    with pytest.raises(BundleError, match="expected float32"):
        server_control(server_file(tmp_path / "b", bundle, dict(list(good.items())[1:])), bundle.manifest)
    next(iter(good.values())).flat[0] = np.inf
    with pytest.raises(BundleError, match="all finite"):
        server_control(server_file(tmp_path / "c", bundle, good), bundle.manifest)
    (tmp_path / "d").write_bytes(b"\xff" * 64)
    with pytest.raises(TensorFileError):
        server_control(tmp_path / "d", bundle.manifest)


def test_a_device_downloads_the_fleets_by_its_announced_digest(bundle: Bundle, tmp_path: Path) -> None:
    s3 = FakeS3()
    key = f"{model_prefix(FLEET, bundle.manifest.version)}server.safetensors"
    path = server_file(tmp_path / "made", bundle, drawn(bundle, 5))
    s3.objects[key] = path.read_bytes()

    def fetched(state: ServerState | None, control: str | None = "scaffold") -> Path | None:
        announced = announcement(bundle, control=control)
        base = announced.base.model_copy(update={"state": state})
        return fetch_control(s3, "b", announced.model_copy(update={"base": base}), bundle.manifest, tmp_path)

    good = ServerState(strategy="scaffold", sha256=sha256_of(path))
    found = fetched(good)
    assert found is not None
    assert found.read_bytes() == path.read_bytes()
    assert fetched(good) == found
    assert s3.reads == [key], "what is whole is not fetched again"
    assert fetched(None) is None
    assert fetched(ServerState(strategy="fedadam", sha256="1" * 64)) is None
    assert fetched(good, "feddyn") is None
    s3.objects[key] = path.read_bytes()[:-1] + b"x"
    with pytest.raises(FedgrassError, match="digest"):
        fetched(ServerState(strategy="scaffold", sha256="2" * 64))
    s3.objects[key] = bytes(path.stat().st_size + (101 << 20))
    with pytest.raises(FedgrassError, match="digest"):
        fetched(ServerState(strategy="scaffold", sha256="2" * 64))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.001, 1),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.booleans(),
    st.sampled_from([None, Schedule(name="exponential", decay_steps=7, decay_rate=0.5)]),
)
def test_a_step_length_is_how_far_a_constant_gradient_moves_a_parameter(
    rate: float, steps: int, momentum: float, nesterov: bool, schedule: Schedule | None
) -> None:
    optimizer = Optimizer(
        name="momentum" if momentum else "sgd", momentum=momentum, nesterov=nesterov and momentum > 0, schedule=schedule
    )
    w = v = 0.0
    for step in range(steps):  # as Keras writes it
        now = rate if schedule is None else rate * 0.5 ** (step / 7)
        v = momentum * v - now * 3.0
        w += momentum * v - now * 3.0 if optimizer.nesterov else v
    assert step_length(optimizer, rate, steps) == pytest.approx(-w / 3.0)
