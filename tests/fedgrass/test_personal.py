"""Parameters that a device keeps for itself: trained, kept, applied, and never sent."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgrass import tensors
from fedgrass.bundle import INFERENCE, INFERENCE_INT8, Bundle, Parameters, TensorDescription, parse_manifest
from fedgrass.data import Split, split
from fedgrass.engines.base import FitResult, FitSettings, FitState, Hooks, StopTraining
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.errors import BundleError, EngineError
from fedgrass.fitting import seed_of
from fedgrass.inference import Application, write_bundle
from fedgrass.personal import OWN, Own, local_names, write_personal
from fedgrass.personal_models import DITTO, TUNED, PersonalModels
from fedgrass.protocol.messages import Announcement, Base, Cohort, FitTask, PersonalTask, UpdateTask, Upload
from fedgrass.protocol.names import update_prefix
from fedgrass.training import Trained, TrainingFiles, train
from fedgrass.update.reader import UpdateReader
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local

FLEET, THING = "f", "t"
NAMES = (
    "conv/kernel",
    "conv/bias",
    "bn/gamma",
    "bn/beta",
    "out/kernel",
    "out/bias",
    "bn/moving_mean",
    "bn/moving_variance",
)
STATISTICS = {"bn/moving_mean", "bn/moving_variance"}


def described(*names: str) -> list[TensorDescription]:
    return [TensorDescription(name=name, shape=(2,), dtype="float32") for name in names]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return partly_local(Bundle.open(digits.BUNDLE), tmp_path_factory.mktemp("bundle") / "head", "head")


def local_of(bundle: Bundle) -> list[str]:
    return [parameter.name for parameter in bundle.manifest.local_parameters]


def shared_of(bundle: Bundle) -> list[str]:
    return [parameter.name for parameter in bundle.manifest.shared_parameters]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["head"], ["out/kernel", "out/bias"]),
        (["bn"], ["bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"]),
        (["out/bias"], ["out/bias"]),
        (["conv"], ["conv/kernel", "conv/bias"]),
        (["*/bias"], ["conv/bias", "out/bias"]),
        (["head", "bn", "out"], [name for name in NAMES if not name.startswith("conv")]),
    ],
)
def test_patterns_name_layers_and_parameters_in_the_models_order(patterns: list[str], expected: list[str]) -> None:
    assert local_names(patterns, described(*NAMES), STATISTICS) == tuple(n for n in NAMES if n in expected)


def test_pytorchs_names_are_of_layers_too() -> None:
    names = ("0.weight", "1.weight", "1.bias", "4.weight", "4.bias", "1.running_mean", "1.running_var")
    statistics = {"1.running_mean", "1.running_var"}
    assert local_names(["head"], described(*names), statistics) == ("4.weight", "4.bias")
    assert local_names(["bn"], described(*names), statistics) == (
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    )


@pytest.mark.parametrize(
    ("patterns", "outputs", "message"),
    [
        (["none"], 1, "'none': names no parameter; the layers that train are conv, bn, out"),
        (["*"], 1, "leaves nothing to share"),
        (["head"], 2, "the model has 2 outputs; name the layers"),
    ],
)
def test_what_cannot_be_local_is_refused_by_name(patterns: list[str], outputs: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        local_names(patterns, described(*NAMES), STATISTICS, outputs=outputs)


def test_where_names_tell_no_layers_there_is_no_last_one() -> None:
    with pytest.raises(BundleError, match="the parameters' names tell no layers"):
        local_names(["head"], described("coef", "intercept"), set())
    assert local_names(["intercept"], described("coef", "intercept"), set()) == ("intercept",)


def test_a_model_without_batch_normalization_has_none_to_keep() -> None:
    with pytest.raises(BundleError, match="'bn': names no parameter"):
        local_names(["bn"], described("a/kernel", "b/kernel"), set())


def test_which_parameters_are_local_is_bound_to_the_graphs_digest(bundle: Bundle) -> None:
    whole = Bundle.open(digits.BUNDLE).manifest
    other = bundle.manifest.model_copy(update={"local": (local_of(bundle)[0],)})
    assert len({whole.graph_sha256, bundle.manifest.graph_sha256, other.graph_sha256}) == 3
    state = whole.model_copy(update={"local": ("rng",)})  # of an engine's own, and no parameter
    assert state.graph_sha256 == whole.graph_sha256
    base = Base.of(bundle.manifest, FLEET)
    assert base.names(bundle.manifest)
    assert not base.names(other)
    assert not base.names(whole)


def test_a_manifest_that_shares_nothing_is_refused(bundle: Bundle) -> None:
    every = tuple(parameter.name for parameter in bundle.manifest.parameters)
    with pytest.raises(BundleError, match="nothing is left to share"):
        parse_manifest(bundle.manifest.model_copy(update={"local": every}).to_json())


def announcement(bundle: Bundle, number: int, **update: Any) -> Announcement:
    opened = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(hours=number)
    return Announcement(
        fleet=FLEET,
        round=number,
        opened_at=opened,
        deadline=opened + timedelta(hours=1),
        base=Base.of(bundle.manifest, FLEET),
        cohort=Cohort(salt="s"),
        fit=FitTask(epochs=2, learning_rate=0.2),
        update=UpdateTask.model_validate(update),
        upload=Upload(bucket="bucket", prefix=update_prefix(FLEET, number)),
    )


def data() -> Split:
    x, y = digits.examples()
    return split(x[:60], y[:60], validation_fraction=0.2, seed=0)


def run(folder: Path, bundle: Bundle, announced: Announcement, hooks: Hooks | None = None) -> Trained:
    files = TrainingFiles(folder / "update", folder / "checkpoint", folder / "residual", own=folder / OWN)
    return train(lambda: LiteRTEngine(bundle), bundle, data(), announced, THING, files, hooks=hooks)


def by_hand(bundle: Bundle, announced: Announcement, own: Parameters) -> Parameters:
    """A round in the plainest words: the model with the own parameters in it, trained."""
    engine = LiteRTEngine(bundle)
    engine.set_parameters({**bundle.parameters(), **own})
    return engine.fit(data().train, FitSettings(epochs=2, learning_rate=0.2, seed=seed_of(announced, THING))).parameters


def test_the_shared_travel_and_the_local_stay_over_rounds_and_versions(bundle: Bundle, tmp_path: Path) -> None:
    own: Parameters = {}
    for number in (1, 2, 3):
        announced = announcement(bundle, number)
        expected, base = by_hand(bundle, announced, own), bundle.parameters()
        run(tmp_path, bundle, announced)
        sent = tensors.load(tmp_path / "update")[0]
        assert list(sent) == shared_of(bundle)
        for name, value in sent.items():
            np.testing.assert_array_equal(value, expected[name] - base[name])
        own = Own.of(bundle.manifest, tmp_path / OWN).values
        assert list(own) == local_of(bundle)
        assert all(
            np.array_equal(own[name], expected[name]) and not np.array_equal(own[name], base[name]) for name in own
        )
        moved = {n: v + sent[n] if n in sent else v for n, v in base.items()}
        bundle = write_bundle(bundle, moved, tmp_path / f"v{number}", version=f"1.{number}.0")


def test_a_round_that_is_done_again_gives_the_same_update(bundle: Bundle, tmp_path: Path) -> None:
    run(tmp_path, bundle, announcement(bundle, 1))
    second = run(tmp_path, bundle, announcement(bundle, 2))
    kept = Own.of(bundle.manifest, tmp_path / OWN).values
    (tmp_path / "checkpoint").unlink()
    assert run(tmp_path, bundle, announcement(bundle, 2)).info == second.info
    again = Own.of(bundle.manifest, tmp_path / OWN).values
    assert all(np.array_equal(again[name], value) for name, value in kept.items())


def test_a_training_that_was_stopped_goes_on_to_the_same_local_parameters(bundle: Bundle, tmp_path: Path) -> None:
    places = [tmp_path / "whole", tmp_path / "stopped"]
    for place in places:
        place.mkdir()
        run(place, bundle, announcement(bundle, 1))
    whole = run(places[0], bundle, announcement(bundle, 2))
    batches = iter(range(3))

    def stop(_epoch: int, _step: int) -> None:
        if next(batches, None) is None:
            raise StopTraining

    with pytest.raises(StopTraining):
        run(places[1], bundle, announcement(bundle, 2), Hooks(stop))
    assert run(places[1], bundle, announcement(bundle, 2)).info == whole.info
    found = [Own.of(bundle.manifest, place / OWN).values for place in places]
    assert all(np.array_equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("content", [None, b"", b"\x08" + 7 * b"\x00" + b"{}      ", b"\xff" * 64])
def test_what_was_lost_or_damaged_starts_from_the_bundles_values(
    bundle: Bundle, tmp_path: Path, content: bytes | None
) -> None:
    for place in (tmp_path / "one", tmp_path / "other"):
        place.mkdir()
    run(tmp_path / "one", bundle, announcement(bundle, 1))
    (tmp_path / "one" / OWN).unlink()
    if content is not None:
        (tmp_path / "one" / OWN).write_bytes(content)
    found = run(tmp_path / "one", bundle, announcement(bundle, 2))
    fresh = run(tmp_path / "other", bundle, announcement(bundle, 2))
    assert found.info.sha256 == fresh.info.sha256


def test_own_parameters_of_another_graph_are_not_taken_up(bundle: Bundle, tmp_path: Path) -> None:
    run(tmp_path, bundle, announcement(bundle, 1))
    manifest = bundle.manifest.model_copy(update={"local": tuple(local_of(bundle)[:1])})
    assert Own.of(manifest, tmp_path / OWN).values == {}
    assert Own.of(Bundle.open(digits.BUNDLE).manifest, tmp_path / OWN).values == {}


@pytest.mark.parametrize("codec", ["int8", "topk:0.1", "float16", "int8+zstd"])
def test_lossy_codecs_and_their_residuals_are_of_the_shared_alone(bundle: Bundle, tmp_path: Path, codec: str) -> None:
    for number in (1, 2):
        run(tmp_path, bundle, announcement(bundle, number, codec=codec))
        content = (tmp_path / "update").read_bytes()
        reader = UpdateReader(
            io.BytesIO(content), file_bytes=len(content), parameters=bundle.manifest.shared_parameters
        )
        reader.read_whole(np.empty(sum(p.size for p in bundle.manifest.shared_parameters), np.float32))
    residual = tensors.load(tmp_path / "residual")[0]
    assert {name.split("/", 1)[1] for name in residual} == set(shared_of(bundle))


def test_local_parameters_count_in_no_norm(bundle: Bundle, tmp_path: Path) -> None:
    run(tmp_path, bundle, announcement(bundle, 1))
    plain = tensors.load(tmp_path / "update")[0]
    norm = float(np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in plain.values())))
    (tmp_path / OWN).unlink()
    found = run(tmp_path, bundle, announcement(bundle, 1, clip_norm=norm * (1 + 1e-6)))
    assert found.info.norm == pytest.approx(norm)
    clipped = tensors.load(tmp_path / "update")[0]
    assert all(np.array_equal(value, clipped[name]) for name, value in plain.items()), "nothing was to be clipped"


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_the_application_loads_shared_and_own_together(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("personal")
    bundle = partly_local(Bundle.open(digits.BUNDLE), folder / "bundle", "head")
    rng = np.random.default_rng(seed)
    own = {
        p.name: rng.normal(size=p.shape).astype(np.float32)
        for p in bundle.manifest.parameters
        if p.name in local_of(bundle)
    }
    made = write_personal(bundle, own, folder / "made")
    made.verify()
    assert made.manifest.files.keys() == bundle.manifest.files.keys()
    engine = LiteRTEngine(bundle)
    engine.set_parameters({**bundle.parameters(), **own})
    x = rng.uniform(size=(1, 8, 8, 1)).astype(np.float32)
    found = Application(made.path(INFERENCE), made.manifest)(x)
    np.testing.assert_allclose(found, engine.infer(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(LiteRTEngine(made).infer(x), engine.infer(x))


def test_what_the_round_pruned_of_the_shared_stays_pruned_on_the_device(bundle: Bundle, tmp_path: Path) -> None:
    pruned = write_bundle(bundle, bundle.parameters(), tmp_path / "pruned", version="1.1.0", sparsity=0.5)
    own = {name: bundle.parameters()[name] for name in local_of(bundle)}
    made = write_personal(pruned, own, tmp_path / "made")
    (place,) = [c for c in bundle.manifest.constants if c.parameter == shared_of(bundle)[0]]
    size = 4 * next(p.size for p in bundle.manifest.parameters if p.name == place.parameter)
    parts = [one.path(INFERENCE).read_bytes()[place.offset : place.offset + size] for one in (pruned, made, bundle)]
    assert parts[0] == parts[1] != parts[2]
    whole = [one.manifest.files.get(INFERENCE_INT8) is not None for one in (pruned, made)]
    assert whole[0] == whole[1]


DITTO_TASK = {"mode": "ditto", "strength": 0.5}


def run_personal(folder: Path, bundle: Bundle, announced: Announcement, hooks: Hooks | None = None) -> Trained:
    files = TrainingFiles(folder / "update", folder / "checkpoint", folder / "residual", personal=folder / "personal")
    asked = announced.model_copy(update={"personal": PersonalTask.model_validate(DITTO_TASK)})
    return train(lambda: LiteRTEngine(bundle), bundle, data(), asked, THING, files, hooks=hooks)


def test_ditto_changes_nothing_of_the_update_and_is_told_with_it(tmp_path: Path) -> None:
    bundle = Bundle.open(digits.BUNDLE)
    plain = run(tmp_path, bundle, announcement(bundle, 1))
    shared = tensors.load(tmp_path / "update")[0]
    found = run_personal(tmp_path, bundle, announcement(bundle, 1))
    assert all(np.array_equal(value, shared[n]) for n, value in tensors.load(tmp_path / "update")[0].items())
    own = {f"{prefix}_{name}" for prefix in ("base", "personal") for name in ("accuracy", "loss")}
    assert found.metrics.keys() == plain.metrics.keys() | own
    assert plain.metrics.items() <= found.metrics.items()
    models = PersonalModels(tmp_path / "personal", bundle.manifest).read()
    assert models.keys() == {TUNED, DITTO}
    base = bundle.parameters()
    assert all(np.array_equal(models[TUNED][n] - base[n], value) for n, value in shared.items())
    engine = LiteRTEngine(bundle)
    for model, prefix in ((base, "base"), (models[DITTO], "personal")):
        engine.set_parameters(model)
        judged = engine.evaluate(data().validation)
        assert judged["loss"] == pytest.approx(found.metrics[f"{prefix}_loss"], rel=1e-6)
    hidden = run_personal(tmp_path, bundle, announcement(bundle, 2, figures="left_out"))
    assert hidden.metrics == {}, "no figure of any model leaves the device then"


def stopping_after(count: int) -> Callable[[int, int], None]:
    batches = iter(range(count))

    def stop(_epoch: int, _step: int) -> None:
        if next(batches, None) is None:
            raise StopTraining

    return stop


def test_a_ditto_that_is_stopped_or_done_again_comes_to_the_same(tmp_path: Path) -> None:
    bundle, places = Bundle.open(digits.BUNDLE), [tmp_path / "whole", tmp_path / "stopped"]
    for place in places:
        place.mkdir()
        run_personal(place, bundle, announcement(bundle, 1))
    whole = run_personal(places[0], bundle, announcement(bundle, 2))
    for stops_after in (1, 5, 6, 7):  # four steps are the fleet's, then come those of the device's own
        with suppress(StopTraining):
            run_personal(places[1], bundle, announcement(bundle, 2), Hooks(stopping_after(stops_after)))
    again = run_personal(places[1], bundle, announcement(bundle, 2))
    assert again.info.sha256 == whole.info.sha256
    found = [PersonalModels(place / "personal", bundle.manifest).read() for place in places]
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(value, found[1][kind][n]) for kind in found[0] for n, value in found[0][kind].items())
    assert not list(tmp_path.rglob("personal/checkpoint"))


def test_an_engine_that_trains_in_one_call_says_that_it_cannot_hold_a_model_near(tmp_path: Path) -> None:
    class InOneCall(LiteRTEngine):
        takes_start = False

    bundle = Bundle.open(digits.BUNDLE)
    asked = announcement(bundle, 1).model_copy(update={"personal": PersonalTask.model_validate(DITTO_TASK)})
    files = TrainingFiles(tmp_path / "update", tmp_path / "checkpoint", personal=tmp_path / "personal")
    with pytest.raises(EngineError, match=r"personal\.mode ditto: this device's engine trains in one call"):
        train(lambda: InOneCall(bundle), bundle, data(), asked, THING, files)


def test_the_two_turns_of_fedrep_move_one_part_each_even_when_stopped_between_batches(
    bundle: Bundle, tmp_path: Path
) -> None:
    base = bundle.parameters()
    states: list[FitState] = []
    settings_ = FitSettings(epochs=2, local_epochs=1, learning_rate=0.2, seed=3, proximal_mu=0.1)

    def keep(state: FitState) -> None:
        states.append(replace(state, parameters={n: v.copy() for n, v in state.parameters.items()}))

    engine = LiteRTEngine(bundle)
    whole = engine.fit(data().train, settings_, hooks=Hooks(after_epoch=keep))
    head = states[0].parameters
    assert all(np.array_equal(head[n], base[n]) for n in shared_of(bundle))
    assert not any(np.array_equal(head[n], base[n]) for n in local_of(bundle))
    assert all(np.array_equal(whole.parameters[n], head[n]) for n in local_of(bundle))
    assert not any(np.array_equal(whole.parameters[n], head[n]) for n in shared_of(bundle))
    # The second turn is a training of the whole from there, with the head put back after each step.
    for resumed in (states[0], states[1]):
        assert same_parameters(LiteRTEngine(bundle).fit(data().train, settings_, resume=resumed).parameters, whole)
    stopped: list[FitState] = []

    def stop(epoch: int, step: int) -> None:
        if (epoch, step) == (1, 1):
            raise StopTraining

    with pytest.raises(StopTraining):
        LiteRTEngine(bundle).fit(data().train, settings_, hooks=Hooks(stop, stopped=stopped.append))
    assert same_parameters(LiteRTEngine(bundle).fit(data().train, settings_, resume=stopped[0]).parameters, whole)


def same_parameters(found: Parameters, whole: FitResult) -> bool:
    return all(np.array_equal(value, found[name]) for name, value in whole.parameters.items())
