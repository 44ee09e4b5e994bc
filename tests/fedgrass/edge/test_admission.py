"""Admission: only a model that is whole, runs, and is not worse here becomes active."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedgrass.builder_archive import add_builder, builder_sha256, pack_builder
from fedgrass.bundle import GRAPH, INFERENCE, MANIFEST, PARAMETERS, Bundle
from fedgrass.data import load
from fedgrass.edge.admission import chance, judge
from fedgrass.edge.admissions import Admission
from fedgrass.edge.admit import admit
from fedgrass.edge.judging import Case, judge_apart, judge_here
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.engines.base import Dataset, FitSettings
from fedgrass.engines.flower_node import Node
from fedgrass.engines.registry import open_engine
from fedgrass.engines.shipped import import_from
from fedgrass.engines.sklearn import initial_parameters
from fedgrass.errors import BundleError
from fedgrass.inference import write_bundle
from fedgrass.logs import Log
from tests.fedgrass.edge import digits
from tests.fedgrass.engines.models import digits_bundle
from tests.fixtures.waiting import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[3]
LOG = Log("test")


class Place:
    """A device's model store and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "store")
        self.runtime = RuntimeSettings(fleet="f", data=digits.settings_for(digits.write_data(folder / "data.npz")))

    def admit(self, artifacts: Path, *, tolerance: float = 0.05, **limits: Any) -> Admission | None:
        deployer = ModelDeployerSettings(tolerance=tolerance, **limits)
        return admit(artifacts, self.store, self.runtime, deployer, LOG, judged=lambda case: judge_here(case, LOG))

    @property
    def active(self) -> str | None:
        bundle = self.store.active()
        return bundle.manifest.version if bundle else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> Bundle:
    return digits.version(tmp_path / "good", "1.1.0", digits.trained())


@pytest.fixture
def bad(tmp_path: Path) -> Bundle:
    return digits.version(tmp_path / "bad", "1.2.0", digits.random())


def test_a_first_model_only_needs_to_be_sound(place: Place, bad: Bundle) -> None:
    admission = place.admit(bad.folder)
    assert admission is not None
    assert (admission.outcome, admission.active_version) == ("active", "1.2.0")
    assert "no active model" in admission.reason
    assert 0 <= admission.metrics["accuracy"] <= 1


def test_a_model_that_is_active_already_is_let_in_at_once(place: Place, good: Bundle) -> None:
    place.admit(good.folder)
    assert place.admit(good.folder) is None
    assert len(place.store.admissions()) == 1


def test_an_activation_that_was_cut_short_before_its_note_is_noted(place: Place, good: Bundle) -> None:
    with place.store.lock():
        place.store.activate(good)
    admission = place.admit(good.folder)
    assert admission is not None
    assert (admission.version, admission.outcome) == ("1.1.0", "active")
    assert place.admit(good.folder) is None


def test_a_worse_model_is_refused_and_the_active_one_stays(place: Place, good: Bundle, bad: Bundle) -> None:
    place.admit(good.folder)
    place.admit(bad.folder)
    admission = place.admit(bad.folder)
    assert admission is not None
    assert admission.outcome == "refused"
    assert place.active == "1.1.0"
    assert "accuracy" in admission.reason
    assert admission.metrics["accuracy"] < admission.metrics["active_accuracy"]
    assert [a.outcome for a in place.store.admissions()] == ["active", "refused"]


def test_a_better_model_is_let_in(place: Place, good: Bundle, tmp_path: Path) -> None:
    place.admit(digits.version(tmp_path / "bad", "1.0.0", digits.random()).folder)
    admission = place.admit(good.folder)
    assert admission is not None
    assert (admission.outcome, admission.reason) == ("active", "")
    assert place.active == "1.1.0"


def test_an_older_model_is_brought_back_even_if_it_is_worse_but_not_if_it_is_damaged(
    place: Place, good: Bundle, tmp_path: Path
) -> None:
    place.admit(good.folder)
    older = digits.version(tmp_path / "older", "1.0.0", digits.random())
    admission = place.admit(older.folder)
    assert admission is not None
    assert (admission.outcome, place.active) == ("active", "1.0.0")
    assert "older than 1.1.0" in admission.reason
    assert admission.metrics["accuracy"] < admission.metrics["active_accuracy"]
    place.admit(good.folder)
    damaged = digits.version(tmp_path / "damaged", "1.0.1", digits.random())
    damaged.path(PARAMETERS).write_bytes(b"x")
    refused = place.admit(damaged.folder)
    assert refused is not None
    assert (refused.outcome, place.active) == ("refused", "1.1.0")


def test_the_tolerance_decides(place: Place, good: Bundle, bad: Bundle) -> None:
    place.admit(good.folder)
    admission = place.admit(bad.folder, tolerance=1.0)
    assert admission is not None
    assert admission.outcome == "active"


@pytest.mark.parametrize("name", [GRAPH, PARAMETERS, INFERENCE])
def test_a_corrupted_file_is_refused_by_its_digest(place: Place, good: Bundle, name: str) -> None:
    content = bytearray(good.path(name).read_bytes())
    content[len(content) // 2] ^= 1
    good.path(name).write_bytes(content)
    admission = place.admit(good.folder)
    assert admission is not None
    assert admission.outcome == "refused"
    assert name in admission.reason
    assert place.active is None


@pytest.mark.parametrize("name", [GRAPH, INFERENCE])
def test_a_graph_that_does_not_load_is_refused(place: Place, good: Bundle, name: str) -> None:
    good.path(name).write_bytes(b"\x20\x00\x00\x00TFL3" + b"\xff" * 1000)
    sealed = Bundle.seal(good.folder, good.manifest)
    admission = place.admit(sealed.folder)
    assert admission is not None
    assert admission.outcome == "refused"


def test_parameters_that_are_not_finite_are_refused(place: Place, good: Bundle) -> None:
    from fedgrass import tensors

    parameters = good.parameters()
    first = next(iter(parameters))
    parameters[first].reshape(-1)[0] = np.nan
    tensors.save(good.path(PARAMETERS), parameters)
    admission = place.admit(Bundle.seal(good.folder, good.manifest).folder)
    assert admission is not None
    assert admission.outcome == "refused"
    assert first in admission.reason


def test_a_device_without_data_lets_a_sound_model_in_and_says_so(place: Place, good: Bundle, bad: Bundle) -> None:
    place.admit(good.folder)
    (place.folder / "data.npz").unlink()
    admission = place.admit(bad.folder)
    assert admission is not None
    assert admission.outcome == "active"
    assert "no data to judge by" in admission.reason


def test_a_model_that_does_not_fit_the_data_that_the_active_one_fits_is_refused(place: Place, good: Bundle) -> None:
    place.admit(good.folder)
    document = json.loads(good.path(MANIFEST).read_text())
    document |= {"version": "2.0.0", "x": {**document["x"], "shape": [9, 9, 1]}}
    good.path(MANIFEST).write_text(json.dumps(document))
    admission = place.admit(good.folder)
    assert admission is not None
    assert admission.outcome == "refused"
    assert place.active == "1.1.0"


def test_a_damaged_active_model_does_not_keep_a_sound_one_out(place: Place, good: Bundle, bad: Bundle) -> None:
    place.admit(good.folder)
    (place.store.folder / "active" / PARAMETERS).write_bytes(b"")
    admission = place.admit(bad.folder)
    assert admission is not None
    assert admission.outcome == "active"
    assert "cannot be judged" in admission.reason


def test_a_folder_without_a_bundle_is_an_error(place: Place, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"model\.json"):
        place.admit(tmp_path)


def test_a_refusal_is_thought_over_again_only_when_something_else_is_asked(
    place: Place, good: Bundle, bad: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.admit(good.folder)
    judged: list[object] = []

    def counted(candidate: Bundle, *given: Any, **more: Any) -> Any:
        judged.append(candidate)
        return judge(candidate, *given, **more)

    monkeypatch.setattr("fedgrass.edge.admission.judge", counted)
    first = place.admit(bad.folder)
    assert first is not None
    assert (
        place.admit(bad.folder) == place.admit(bad.folder) == first
    )  # as a nucleus repeats an install, or starts again
    assert (len(judged), len(place.store.admissions())) == (1, 2)
    place.admit(bad.folder, tolerance=0.06)
    assert len(judged) == 2
    assert place.admit(good.folder) is None  # put back
    again = place.admit(bad.folder, tolerance=0.06)
    assert again is not None
    assert (len(judged), again.outcome, again.number) == (3, "refused", 4)  # and told again


def test_a_refusal_does_not_stand_for_ever(
    place: Place, good: Bundle, bad: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.admit(good.folder)
    place.admit(bad.folder)
    monkeypatch.setattr("fedgrass.edge.admit._VERDICT_SECONDS", -1)
    place.runtime = place.runtime.model_copy(
        update={"data": place.runtime.data.model_copy(update={"path": "/nowhere"})}
    )
    admission = place.admit(bad.folder)
    assert admission is not None
    assert admission.outcome == "active"


def test_what_is_no_bundle_is_refused_by_the_version_of_its_folder(place: Place, good: Bundle, tmp_path: Path) -> None:
    place.admit(good.folder)
    folder = tmp_path / "com.fedgrass.GlobalModel" / "1.2.0"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text("{}")
    admission = place.admit(folder)
    assert admission is not None
    assert (admission.version, admission.outcome, place.active) == ("1.2.0", "refused", "1.1.0")
    assert place.admit(folder) == admission


def run_script(artifacts: Path, store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "SVCUID"} | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "fedgrass.edge.admit", "--artifacts", str(artifacts), "--store", str(store)]
    command += options
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_script_tells_its_verdict_by_exit_code_and_one_line_of_json(good: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "store"
    admitted = run_script(good.folder, store)
    assert admitted.returncode == 0, admitted.stdout + admitted.stderr
    assert json.loads(admitted.stdout.splitlines()[-1])["event"] == "model_active"
    good.path(GRAPH).write_bytes(b"")
    refused = run_script(good.folder, tmp_path / "other")
    assert refused.returncode == 0, refused.stderr  # a decision, and no failure of the deployment
    told = [json.loads(line) for line in (refused.stdout + refused.stderr).splitlines()][-1]
    assert (told["event"], told["level"]) == ("model_refused", "warning")
    assert run_script(good.folder, tmp_path / "other", "--refusal", "fail").returncode == 1
    assert run_script(tmp_path, store).returncode == 1


@pytest.mark.parametrize(
    ("accuracy", "examples", "points"), [(0.9333, 45, 0.08), (0.9, 1000, 0.019), (1.0, 10, 0.16), (0.5, 0, 0.71)]
)
def test_few_examples_excuse_more_than_many(accuracy: float, examples: int, points: float) -> None:
    assert chance(accuracy, examples) == pytest.approx(points, abs=0.005)


def test_a_model_that_is_too_slow_or_too_large_for_the_device_is_refused(
    place: Place, good: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a process grows by depends on what it held before: here each look at it finds a megabyte more.
    sizes = itertools.count(100 << 20, 1 << 20)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=next(sizes)))
    monkeypatch.setattr("fedgrass.edge.admission.psutil.Process", lambda: process)
    for limits, word in (({"max_latency_ms": 1e-6}, "maxLatencyMs"), ({"max_memory_mb": 0.5}, "maxMemoryMb")):
        admission = place.admit(good.folder, **limits)
        assert admission is not None
        assert admission.outcome == "refused"
        assert word in admission.reason
    admission = place.admit(good.folder, max_latency_ms=1000 * PATIENCE, max_memory_mb=10_000)
    assert admission is not None
    assert admission.outcome == "active"
    assert admission.metrics["latency_ms"] > 0


def test_a_model_of_another_engine_is_judged_by_that_engine(tmp_path: Path) -> None:
    place = Place(tmp_path)
    builder = "tests.fedgrass.engines.models:logistic"
    place.runtime = place.runtime.model_copy(update={"engine": "sklearn", "builder": builder})
    base = initial_parameters(builder, features=64, classes=10)
    first = digits_bundle(tmp_path / "first", "sklearn", base)
    engine = open_engine("sklearn", first, builder=builder)
    learnt = engine.fit(load(place.runtime.data, first.manifest).train, FitSettings(learning_rate=0.01)).parameters
    good = write_bundle(first, learnt, tmp_path / "good", version="1.1.0")
    bad = write_bundle(first, base, tmp_path / "bad", version="1.2.0")
    assert place.admit(good.folder) is not None
    refused = place.admit(bad.folder)
    assert refused is not None
    assert (refused.outcome, place.active) == ("refused", "1.1.0")
    assert "accuracy" in refused.reason


def test_each_of_two_models_is_judged_by_the_code_that_it_brings_and_one_with_code_that_is_not_trusted_is_refused(
    tmp_path: Path,
) -> None:
    place, builds = Place(tmp_path), tmp_path / "builds"
    base = initial_parameters("tests.fedgrass.engines.models:logistic", features=64, classes=10)
    made = []
    for number in (1, 2):
        code = tmp_path / "operators_estimator.py"
        code.write_text(
            "from sklearn.linear_model import SGDClassifier\n"
            f"def build():\n    open({str(builds)!r}, 'a').write('{number}')\n    return SGDClassifier(loss='log_loss')\n"
        )
        first = add_builder(digits_bundle(tmp_path / f"first-{number}", "sklearn", base), pack_builder(code))
        made.append(write_bundle(first, base, tmp_path / str(number), version=f"{number}.0.0"))
    one, two = made
    trusted = {builder_sha256(one): "operators_estimator:build"}
    place.runtime = place.runtime.model_copy(update={"engine": "sklearn", "builders": trusted})
    try:
        assert place.admit(one.folder) is not None
        refused = place.admit(two.folder)
        assert refused is not None
        assert (refused.outcome, place.active) == ("refused", "1.0.0")
        assert "does not trust" in refused.reason
        builds.unlink()
        trusted[builder_sha256(two)] = "operators_estimator:build"
        place.runtime = place.runtime.model_copy(update={"builders": dict(trusted)})
        assert place.admit(two.folder) is not None
    finally:
        import_from(None)
    assert (place.active, builds.read_text()) == ("2.0.0", "21")


def test_settings_of_any_length_reach_who_judges(place: Place, good: Bundle) -> None:
    long = place.runtime.model_copy(update={"node_config": {f"site_{number}": "x" * 8192 for number in range(40)}})
    case = Case(
        candidate=good.folder,
        active=None,
        builders=place.folder / "builders",
        runtime=long,
        deployer=ModelDeployerSettings(),
    )
    assert judge_apart(case).admitted


def test_a_model_that_was_rolled_back_stays_out_when_its_script_runs_again(
    place: Place, tmp_path: Path, good: Bundle
) -> None:
    better = digits.version(tmp_path / "better", "1.3.0", digits.trained())
    place.admit(good.folder)
    place.admit(better.folder)
    with place.store.lock():
        place.store.roll_back("the application: it is slow")
    assert place.active == "1.1.0"
    assert place.admit(better.folder) is None
    assert place.active == "1.1.0"


def test_a_model_is_compared_by_the_figure_that_the_device_names(place: Place, good: Bundle, bad: Bundle) -> None:
    place.admit(good.folder)
    refused = place.admit(bad.folder, metric="auc")
    assert refused is not None
    assert refused.outcome == "refused"
    assert "auc" in refused.reason
    assert refused.metrics["auc"] < refused.metrics["active_auc"]


@pytest.mark.parametrize(
    ("metric", "found", "before", "refused"),
    [
        ("f1", 0.50, 0.90, True),
        ("f1", 0.85, 0.90, False),
        ("rmse", 2.0, 1.0, True),
        ("rmse", 1.04, 1.0, False),
        ("r2", 0.5, 0.9, True),
        ("mae", 0.5, 0.9, False),
    ],
)
def test_a_named_figure_may_be_worse_by_the_tolerance(metric: str, found: float, before: float, refused: bool) -> None:
    from fedgrass.edge.admission import WorseError, _require_not_worse_by

    metrics = {"examples": 1000.0, metric: found, f"active_{metric}": before}
    if refused:
        with pytest.raises(WorseError, match=metric):
            _require_not_worse_by(metric, "1.1.0", "1.0.0", metrics, 0.05, None)
    else:
        _require_not_worse_by(metric, "1.1.0", "1.0.0", metrics, 0.05, None)


def test_a_rare_class_leaves_more_to_chance_than_the_examples_say() -> None:
    from fedgrass.edge.admission import _told_by
    from fedgrass.protocol.sums import Sums

    sums = Sums.model_validate({"k": "classes", "n": 1000, "r": (985, 4), "g": (991, 9), "t": (990, 10)})
    assert [_told_by(metric, sums, 1000) for metric in ("f1", "auc", "accuracy")] == [10, 20, 1000]
    assert _told_by("f1", None, 1000) == 1000
    many = Sums.model_validate({"k": "classes", "n": 40, "r": (4,) * 10, "g": (4,) * 10, "t": (4,) * 10})
    assert _told_by("f1", many, 40) == 40


class OfAnApp:
    """An engine with data of its own: those of the device's partition, as a Flower app finds it in its node's configuration."""

    node = Node("nobody")

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        del threads
        self.version = bundle.manifest.version

    def evaluate(self, _data: Dataset) -> dict[str, float]:
        accuracy = {"1.0.0": 0.9, "2.0.0": 0.2}[self.version]
        return {"loss": 1.0, "accuracy": accuracy, "examples": float(self.node.config["partition-id"])}


def test_an_app_is_judged_as_the_node_that_it_trains_on_and_not_by_the_figures_of_another_app(tmp_path: Path) -> None:
    zeros = {"w": np.zeros(3, np.float32)}
    first, other = (digits_bundle(tmp_path / name, "flower", zeros, name=name) for name in ("first", "other"))
    worse = write_bundle(first, zeros, tmp_path / "worse", version="2.0.0")
    own = {"engine": f"{__name__}:OfAnApp", "data": {"loader": "own"}, "node_config": {"partition-id": 700}}
    for active, admitted in ((other, True), (first, False)):
        case = Case(
            candidate=worse.folder,
            active=active.folder,
            builders=tmp_path / "builders",
            runtime=RuntimeSettings.model_validate({"fleet": "f", **own}),
            deployer=ModelDeployerSettings(),
        )
        judgement = judge_here(case, LOG)
        assert (judgement.admitted, judgement.metrics["examples"]) == (admitted, 700), judgement.reason
