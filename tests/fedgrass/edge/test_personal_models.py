"""What the application loads where the device keeps parameters, or whole models, for itself, through everything."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedgrass.bundle import INFERENCE, PARAMETERS, Bundle, Parameters
from fedgrass.edge.admissions import Admission
from fedgrass.edge.admit import admit, scores_of
from fedgrass.edge.device_models import FLEET
from fedgrass.edge.judging import Case, Judgement, judge_here
from fedgrass.edge.model_store import ModelStore
from fedgrass.edge.score import Score
from fedgrass.edge.settings import ModelDeployerSettings, RuntimeSettings
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.inference import Application, write_bundle
from fedgrass.logs import Log
from fedgrass.personal import Own
from fedgrass.personal_models import DITTO, TUNED, PersonalModels
from fedgrass.protocol.fleet_score import fleet_score
from tests.fedgrass.edge import digits
from tests.fedgrass.partly_local import partly_local
from tests.fixtures.doubles import double

LOG = Log("test")


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(folder / "store")
        self.runtime = RuntimeSettings(fleet="f", data=digits.settings_for(digits.write_data(folder / "data.npz")))
        plain = partly_local(Bundle.open(digits.BUNDLE), folder / "plain", "head")
        self.local = {parameter.name for parameter in plain.manifest.local_parameters}
        # A head that knows nothing: a trained body alone is then of no use.
        scrambled = {n: digits.random()[n] if n in self.local else v for n, v in plain.parameters().items()}
        self.base = write_bundle(plain, scrambled, folder / "base", version="1.0.0")
        self.judged: list[Judgement] = []

    def version(self, number: int, shared: Parameters) -> Bundle:
        """A new version as the cloud makes it: other shared parameters, the local as they were at export."""
        values = {n: v if n in self.local else shared[n] for n, v in self.base.parameters().items()}
        return write_bundle(self.base, values, self.folder / f"v{number}", version=f"1.{number}.0")

    def has(self, kind: str, values: Parameters, identity: str = "round") -> None:
        """The trainer keeps a model of the device's own."""
        kept = PersonalModels(self.store.device.personal, self.base.manifest, identity).kept(kind)
        kept.path.parent.mkdir(parents=True, exist_ok=True)
        kept.keep({}, values)

    def trains(self, values: Parameters, identity: str = "round") -> None:
        """The device's trainer keeps what it trained."""
        Own.of(self.base.manifest, self.store.device.own, identity).keep(values)

    def admit(self, bundle: Bundle) -> Admission | None:
        return admit(
            bundle.folder, self.store, self.runtime, ModelDeployerSettings(tolerance=0.02), LOG, judged=self._judge
        )

    def _judge(self, case: Case) -> Judgement:
        self.judged.append(judge_here(case, LOG))
        return self.judged[-1]

    def loads(self) -> Parameters:
        """What the application finds behind the path that stays; its two files agree."""
        applied = self.store.applied()
        assert applied is not None
        assert applied.folder == (self.store.folder / "active").resolve()
        applied.verify()
        x = digits.examples()[0][:1]
        found = Application(self.store.folder / "active" / INFERENCE, applied.manifest)(x)
        np.testing.assert_allclose(found, LiteRTEngine(applied).infer(x), rtol=1e-4, atol=1e-5)
        return applied.parameters()

    def mixed(self, shared: Parameters, own: Parameters) -> Parameters:
        return {name: (own if name in self.local else shared)[name] for name in own}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def same(found: Parameters, expected: Parameters) -> bool:
    return all(np.array_equal(found[name], value) for name, value in expected.items())


def scaled(parameters: Parameters, factor: float) -> Parameters:
    return {name: np.asarray(value * np.float32(factor)) for name, value in parameters.items()}


def test_a_device_that_has_trained_nothing_yet_loads_the_models_own_values(place: Place) -> None:
    first = place.version(1, digits.trained())
    admission = place.admit(first)
    assert admission is not None
    assert admission.outcome == "active"
    assert same(place.loads(), first.parameters())
    assert (place.store.folder / "active").resolve() == place.store.folder / "models" / "1.1.0"


def test_each_new_version_is_judged_and_loaded_with_the_devices_own(place: Place) -> None:
    place.admit(place.version(1, digits.trained()))
    place.trains(digits.trained())
    admission = place.admit(place.version(2, digits.trained()))
    assert admission is not None
    assert admission.outcome == "active"
    assert admission.metrics["accuracy"] > 0.85, "with the head of the export it knows nothing"
    assert admission.metrics["active_accuracy"] < 0.5, "what ran before had no head of its own"
    assert same(place.loads(), digits.trained())
    active = place.store.active()
    assert active is not None
    assert active.parameters().keys() == place.base.parameters().keys()
    found = place.store.find(
        "1.2.0", parameters_sha256=active.manifest.parameters_sha256, graph_sha256=active.manifest.graph_sha256
    )
    assert found is not None, "what rounds start from is the fleet's, byte for byte"
    assert same(found.parameters(), place.mixed(digits.trained(), place.base.parameters()))


def test_a_version_that_is_worse_with_the_devices_own_stays_out(place: Place) -> None:
    place.trains(digits.trained())
    place.admit(place.version(1, digits.trained()))
    admission = place.admit(place.version(2, digits.random()))
    assert admission is not None
    assert admission.outcome == "refused"
    assert same(place.loads(), digits.trained())
    assert not list(place.store.folder.glob(".judged*"))


def test_a_damaged_version_is_refused_before_it_is_mixed(place: Place) -> None:
    place.trains(digits.trained())
    bad = place.version(1, digits.trained())
    content = bytearray(bad.path(PARAMETERS).read_bytes())
    content[-1] ^= 1
    bad.path(PARAMETERS).write_bytes(content)
    admission = place.admit(bad)
    assert admission is not None
    assert admission.outcome == "refused"
    assert "digest" in admission.reason


def test_a_re_install_keeps_what_is_the_devices_own_and_mends_what_was_damaged(place: Place) -> None:
    place.trains(digits.trained())
    first = place.version(1, digits.trained())
    place.admit(first)
    before = (place.store.folder / "active").resolve()
    assert place.admit(first) is None
    assert (place.store.folder / "active").resolve() == before
    (before / INFERENCE).write_bytes(b"spoilt")
    place.admit(first)
    assert same(place.loads(), digits.trained())
    (before / "model.json").unlink()
    place.admit(first)
    assert same(place.loads(), digits.trained())


def test_a_roll_back_takes_the_newest_of_the_devices_own(place: Place) -> None:
    place.trains(digits.trained(), "1")
    place.admit(place.version(1, digits.trained()))
    place.admit(place.version(2, scaled(digits.trained(), 1.01)))
    newer = scaled(digits.trained(), 1.5)
    place.trains(newer, "2")
    with place.store.lock():
        place.store.roll_back("a test")
    active = place.store.active()
    assert active is not None
    assert active.manifest.version == "1.1.0"
    assert same(place.loads(), place.mixed(digits.trained(), newer))
    assert len(list(active.folder.glob("own-*"))) == 1, "what was loaded before is gone"
    with place.store.lock():
        assert place.store.prune(1) == ["1.2.0"]
    assert same(place.loads(), place.mixed(digits.trained(), newer))


def test_what_is_lost_starts_from_the_models_values_again(place: Place) -> None:
    place.trains(digits.trained())
    place.admit(place.version(1, digits.trained()))
    place.store.device.own.write_bytes(b"spoilt")
    second = place.version(2, digits.trained())
    with place.store.lock():
        place.store.activate(second)
    assert same(place.loads(), second.parameters())


def test_a_refusal_is_thought_over_again_when_the_devices_own_have_changed(place: Place) -> None:
    place.trains(digits.trained(), "1")
    place.admit(place.version(1, digits.trained()))
    other = place.version(2, digits.random())
    place.admit(other)
    place.admit(other)
    assert len(place.judged) == 2
    place.trains(scaled(digits.trained(), 1.1), "2")
    place.admit(other)
    assert len(place.judged) == 3


class Whole(Place):
    """Nothing is local; the device may have whole models for itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base, self.local = Bundle.open(digits.BUNDLE), set()


@pytest.fixture
def whole(tmp_path: Path) -> Whole:
    return Whole(tmp_path)


def test_the_application_loads_whichever_is_best_here(whole: Whole) -> None:
    weak = scaled(digits.trained(), 0.0)
    whole.has(TUNED, digits.random())
    whole.has(DITTO, digits.trained())
    admission = whole.admit(whole.version(1, weak))
    assert admission is not None
    assert admission.outcome == "active"
    assert "loads this device's own (ditto): accuracy" in admission.reason
    assert admission.metrics["ditto_accuracy"] > 0.85 > admission.metrics["tuned_accuracy"]
    assert admission.metrics["accuracy"] < 0.2, "the fleet's own figure is told as it is"
    assert same(whole.loads(), digits.trained())
    active = whole.store.active()
    assert active is not None
    assert same(active.parameters(), weak), "what rounds start from is the fleet's"
    assert not list(whole.store.folder.glob(".personal*"))
    again = whole.admit(whole.version(1, weak))
    assert again is None, "nothing to do"
    whole.has(DITTO, digits.random(), "2")
    whole.admit(whole.version(2, digits.trained()))
    assert (whole.store.folder / "active").resolve().name == "1.2.0", "now the fleet's is the best"


def test_what_a_killed_admission_left_of_the_devices_own_goes_with_the_next(place: Place) -> None:
    place.admit(place.version(1, digits.trained()))
    place.trains(digits.trained())
    place.has(TUNED, digits.trained())
    candidate = place.version(2, digits.trained())
    (place.store.folder / ".judged.1234").mkdir()  # as an earlier release named them
    if (pid := os.fork()) == 0:
        with (
            place.store.lock(),
            place.store.device.as_applied(candidate),
            place.store.device.personal_models(candidate),
        ):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert {".judged", ".personal"} <= {path.name for path in place.store.folder.glob(".*")}
    admission = place.admit(candidate)
    assert admission is not None
    assert admission.outcome == "active"
    assert not list(place.store.folder.glob(".*"))


def test_a_worse_version_is_refused_however_good_the_devices_own_is(whole: Whole) -> None:
    middling = digits.trained()
    whole.admit(whole.version(1, middling))
    # Another one of as good, but never equal: a tie goes to the fleet's.
    whole.has(DITTO, scaled(digits.trained(), 1.0))
    bad = whole.admit(whole.version(2, digits.random()))
    assert bad is not None
    assert bad.outcome == "refused"
    assert same(whole.loads(), middling)


def test_where_the_own_one_is_loaded_the_fleets_are_compared_with_each_other(whole: Whole) -> None:
    whole.has(DITTO, digits.trained())
    weak = scaled(digits.trained(), 0.0)
    whole.admit(whole.version(1, weak))
    assert "personal-" in (whole.store.folder / "active").resolve().name
    better = whole.admit(whole.version(2, weak))
    assert better is not None
    assert better.outcome == "active", "as good as the fleet's before it, though worse than what the application loads"
    assert better.metrics["active_accuracy"] == better.metrics["accuracy"]
    assert same(whole.loads(), digits.trained())
    with whole.store.lock():
        whole.store.roll_back("a test")
    assert same(whole.loads(), weak), "a roll-back asks for the fleet's"


def test_thresholds_made_again_of_an_admitted_detector_keep_the_fleets(tmp_path: Path) -> None:
    (tmp_path / "score.json").write_bytes(fleet_score(0.99, {"error_threshold": 0.25}) or b"")
    detector = double(SimpleNamespace(folder=tmp_path, manifest=SimpleNamespace(anomaly_quantile=0.99)))
    for owners in (None, "fleet", 0.125):
        for own in (0.5, 0.75):  # the second time of what the first has left
            judged = Judgement(admitted=True, chosen=TUNED, thresholds={FLEET: own, TUNED: own / 2})
            made = scores_of(detector, judged, ModelDeployerSettings(anomaly_threshold=owners))
            (tmp_path / "score.json").write_bytes(made[FLEET])
            found = {kind: Score.model_validate_json(content) for kind, content in made.items()}
            assert found[FLEET].fleet == 0.25
            assert found[FLEET].threshold == (own if owners is None else 0.25 if owners == "fleet" else owners)
            assert found[TUNED].fleet is None
            assert found[TUNED].threshold == (owners if isinstance(owners, float) else own / 2)


def test_what_was_made_of_a_version_that_the_fleet_takes_back_goes_with_it(whole: Whole) -> None:
    weak = scaled(digits.trained(), 0.0)
    first = whole.version(1, weak)
    whole.admit(first)
    whole.admit(whole.version(2, weak))
    whole.has(TUNED, digits.trained())
    admission = whole.admit(first)
    assert admission is not None
    assert (admission.version, admission.outcome) == ("1.1.0", "active")
    assert same(whole.loads(), weak)
    assert not PersonalModels(whole.store.device.personal, whole.base.manifest).read()


@pytest.mark.parametrize("spoilt", [b"", b"spoilt", b"\xff" * 64])
def test_a_model_of_ones_own_that_is_damaged_or_foreign_costs_nothing(whole: Whole, spoilt: bytes) -> None:
    whole.has(TUNED, digits.trained())
    whole.has(DITTO, scaled(digits.trained(), float("nan")))
    (whole.store.device.personal / "tuned.safetensors").write_bytes(spoilt)
    admission = whole.admit(whole.version(1, digits.trained()))
    assert admission is not None
    assert (admission.outcome, admission.reason) == ("active", "sound; there is no active model to compare with")
    assert (whole.store.folder / "active").resolve().name == "1.1.0"
