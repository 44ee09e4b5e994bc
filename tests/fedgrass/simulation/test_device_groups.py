"""Groups of virtual devices with models of their own, against IFCA in plain NumPy."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fedgrass import tensors
from fedgrass.bundle import Bundle
from fedgrass.data.digits import digits
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.simulation import report
from fedgrass.simulation.commands import app
from fedgrass.simulation.group_report import GroupsReport
from fedgrass.simulation.grouped_run import simulate_groups
from fedgrass.simulation.partition import drawn
from fedgrass.simulation.run import simulate
from fedgrass.simulation.settings import PartitionScheme
from fedgrass.simulation.simulator import Simulator
from fedgrass.simulation.store import open_report
from tests.fedgrass.simulation.conftest import fleet
from tests.fedgrass.simulation.softmax import ENGINE, softmax_bundle
from tests.fedgrass.simulation.test_personal_rounds import gradient, trained_on

Doubles = NDArray[np.float64]
Model = dict[str, Doubles]
Examples = tuple[Doubles, NDArray[np.int32]]

DEVICES, EXAMPLES, RATE, STEPS, TURNS = 16, 40, 0.5, 5, 4
SETTINGS = {
    "checks": {"max_examples_over_median": 0, "clip_norm_over_median": 0},
    "fit": {"epochs": STEPS, "learning_rate": RATE},
    "gate": {"tolerance": 1.0, "loss_tolerance": 1e9, "below_best": 1e9},
    "min_updates": 1,
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return softmax_bundle(tmp_path_factory.mktemp("groups") / "bundle")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits at each of four turns, as sites whose cameras hang askew would have them."""
    path, whole = tmp_path_factory.mktemp("turned") / "turned.npz", digits((8, 8, 1))
    x = np.concatenate([np.rot90(whole.x, turn, axes=(1, 2)) for turn in range(TURNS)])
    site = np.repeat(["east", "north", "south", "west"], len(whole.x))
    np.savez(path, x=x, y=np.tile(whole.y, TURNS), site=site)
    return path


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups' own are as those of any simulation; drawing them takes longer than these rounds."""
    monkeypatch.setattr(report, "draw", lambda *_: b"")


def grouped(output: Path, bundle: Bundle, data: Path, groups: str, **options: Any) -> GroupsReport:
    changes = options.pop("settings", {})
    given = {"devices": DEVICES, "cohort": 12, "rounds": 4, "examples": EXAMPLES, "partition": "iid", "workers": 1}
    return simulate_groups(
        output,
        bundle=bundle.folder,
        data=str(data),
        groups=groups,
        engine=ENGINE,
        fleet=fleet(SETTINGS).overridden(changes),
        **{**given, **options},
    )


def examples_of(data: Path) -> list[Examples]:
    """Each device's, in turns by site, as a simulation deals them."""
    with np.load(data) as arrays:
        x, y, site = arrays["x"], arrays["y"], arrays["site"]
    order = np.random.default_rng((0, 0)).permutation(len(x))
    pool = np.sort(order[round(len(x) * 0.2) :])
    found = []
    for device in range(DEVICES):
        at = pool[site[pool] == ["east", "north", "south", "west"][device % TURNS]]
        dealt = drawn(y[at], DEVICES // TURNS, EXAMPLES, PartitionScheme.parse("iid"), seed=device % TURNS)
        mine = at[dealt.of(device // TURNS)]
        found.append((x[mine].reshape(len(mine), -1).astype(np.float64), y[mine]))
    return found


def loss(model: Model, x: Doubles, y: NDArray[np.int32]) -> float:
    z = x @ model["w"] + model["b"]
    z = z - z.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]))


def descended(model: Model, x: Doubles, y: NDArray[np.int32], *, steps: int = STEPS) -> Model:
    for _ in range(steps):
        slope = gradient(model, x, y)
        model = {name: value - RATE * slope[name] for name, value in model.items()}
    return model


def first_by_hand(train: list[Examples], asked: list[int], clusters: int) -> list[Model]:
    """Greedy k-means++ over what single devices make of the bundle's model in four rounds' steps."""
    zero: Model = {"w": np.zeros((64, 10)), "b": np.zeros(10)}
    draws, nearest, chosen = np.random.default_rng((0, 11)), np.ones(len(asked)), list[int]()
    alone = {d: descended(zero, *train[d], steps=4 * STEPS) for d in asked}
    table = {d: np.array([loss(alone[d], *train[other]) for other in asked]) for d in asked}
    while len(chosen) < clusters:
        left = [d for d in asked if d not in chosen]
        weights = np.array([nearest[asked.index(d)] for d in left])
        some = draws.choice(len(left), min(10, len(left)) if chosen else 1, replace=False, p=weights / weights.sum())
        tried = {left[at]: np.minimum(nearest, table[left[at]]) if chosen else table[left[at]] for at in sorted(some)}
        best = min(tried, key=lambda d: float(tried[d].sum()))
        chosen, nearest = [*chosen, best], tried[best]
    return [alone[d] for d in chosen]


@pytest.mark.usefixtures("no_charts")
def test_clusters_are_ifca_in_plain_numpy_and_recover_the_turns(tmp_path: Path, bundle: Bundle, data: Path) -> None:
    report = grouped(tmp_path / "s", bundle, data, f"clusters:{TURNS}", tag="site")
    lines = [json.loads(line) for line in (tmp_path / "s" / "choices.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]
    whole = examples_of(data)
    train = [trained_on(device, *mine) for device, mine in enumerate(whole)]
    models = first_by_hand(train, lines[0]["devices"], TURNS)
    for line in lines:
        losses = np.array([[loss(model, *train[d]) for model in models] for d in line["devices"]])
        assert line["groups"] == losses.argmin(axis=1).tolist()
        np.testing.assert_allclose(line["losses"], losses.min(axis=1), rtol=1e-4)
        ends = [descended(models[g], *train[d]) for d, g in zip(line["devices"], line["groups"], strict=True)]
        for k in range(TURNS):
            mine = [end for end, group in zip(ends, line["groups"], strict=True) if group == k]
            # A model that nobody chose stays as it is.
            models[k] = {n: np.mean([one[n] for one in mine], axis=0) for n in models[k]} if mine else models[k]
    for k, (name, group) in enumerate(report.groups.items()):
        found, _ = tensors.load(tmp_path / "s" / group.folder / "model" / "parameters.safetensors")
        for parameter, wanted in models[k].items():
            np.testing.assert_allclose(found[parameter], wanted, rtol=1e-3, atol=1e-5, err_msg=name)
    # Every device of a turn has the same model, and no two turns have one.
    owners = [counts.keys() for counts in report.tags.values()]
    assert report.tags.keys() == {"east", "north", "south", "west"}
    assert [len(one) for one in owners] == [1] * TURNS
    assert len(set[str]().union(*owners)) == TURNS
    by_device = accuracies(whole, train, models)
    assert report.by_device is not None
    assert report.by_device.median == pytest.approx(np.median(by_device))
    assert report.by_device.worst_tenth == pytest.approx(np.sort(by_device)[:2].mean())
    with (tmp_path / "s" / "devices.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(by_device)
    the_models_are_judged_by_their_devices(tmp_path / "s", report)


def accuracies(whole: list[Examples], train: list[Examples], models: list[Model]) -> list[float]:
    """Of the model that fits each device's training examples best, on those that it keeps back."""
    found = []
    for device, (x, y) in enumerate(whole):
        model = min(models, key=lambda one: loss(one, *train[device]))
        held = np.sort(np.random.default_rng((0, device, 7)).permutation(len(y))[: round(len(y) / 5)])
        found.append(float(np.mean((x[held] @ model["w"] + model["b"]).argmax(axis=1) == y[held])))
    return found


def the_models_are_judged_by_their_devices(folder: Path, report: GroupsReport) -> None:
    for group in report.groups.values():
        _, rounds = open_report(folder / group.folder)
        for one in rounds:
            if one.asked:
                assert one.report.evaluation is not None
                assert one.report.evaluated_by_devices == one.asked
                assert one.report.evaluation.examples == one.asked * EXAMPLES // 5
    page = (folder / "index.html").read_text()
    assert all(name in page for name in report.groups)
    assert "north" in page


@pytest.mark.usefixtures("no_charts")
def test_groups_by_tag_are_federations_of_their_own(tmp_path: Path, bundle: Bundle, data: Path) -> None:
    # Models of the devices' own beside it change no update.
    settings = {"personal": {"mode": "fine_tune"}}
    report = grouped(tmp_path / "s", bundle, data, "tag:site", rounds=3, settings=settings)
    assert list(report.groups) == ["site=east", "site=north", "site=south", "site=west"]
    assert [group.devices for group in report.groups.values()] == [DEVICES // TURNS] * TURNS
    train = [trained_on(device, *mine) for device, mine in enumerate(examples_of(data))]
    for at, group in enumerate(report.groups.values()):
        model: Model = {"w": np.zeros((64, 10)), "b": np.zeros(10)}
        _, rounds = open_report(tmp_path / "s" / group.folder)
        for one in rounds:
            devices = [int(update.thing[-7:]) for update in one.report.updates]
            assert {device % TURNS for device in devices} <= {at}
            ends = [descended(model, *train[device]) for device in devices]
            model = {name: np.mean([end[name] for end in ends], axis=0) for name in model} if ends else model
        found, _ = tensors.load(tmp_path / "s" / group.folder / "model" / "parameters.safetensors")
        for name, wanted in model.items():
            np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-5)


def files_of(folder: Path) -> dict[str, bytes]:
    """What must not depend on how it was computed."""
    names = ["choices.jsonl", "devices.csv"]
    names += [str(p.relative_to(folder)) for p in folder.glob("groups/*/rounds.jsonl")]
    names += [str(p.relative_to(folder)) for p in folder.glob("groups/*/model/parameters.safetensors")]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.usefixtures("no_charts")
def test_neither_processes_nor_a_break_between_two_groups_change_a_byte(
    tmp_path: Path, bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "settings": {
            "strategy": {"name": "fedadam"},
            "privacy": {"mode": "central", "clip_norm": 1.0, "noise_multiplier": 0.01},
        },
        "stragglers": "0.5:5x",
        "dropout": 0.1,
        "seed": 3,
    }
    grouped(tmp_path / "one", bundle, data, "clusters:2", **options)
    wanted = files_of(tmp_path / "one")
    assert len(wanted) == 6
    steps, plain = [0], Simulator.step

    def broken(self: Simulator) -> Any:
        # In the second group of the third round: one has it, one has not.
        steps[0] += 1
        if steps[0] == 6:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(Simulator, "step", broken)
    with pytest.raises(KeyboardInterrupt):
        grouped(tmp_path / "broken", bundle, data, "clusters:2", **options)
    monkeypatch.undo()
    with (tmp_path / "broken" / "choices.jsonl").open("ab") as file:
        file.write(b'{"round":4,"devi')  # as a power cut leaves it
    grouped(tmp_path / "broken", bundle, data, "clusters:2", workers=2, resume=True, **options)
    assert files_of(tmp_path / "broken") == wanted
    with pytest.raises(ConfigurationError, match="was simulated with another groups"):
        grouped(tmp_path / "broken", bundle, data, "clusters:3", resume=True, **options)
    with pytest.raises(ConfigurationError, match="holds a simulation"):
        grouped(tmp_path / "broken", bundle, data, "clusters:2", **options)


@pytest.mark.parametrize(
    ("groups", "options", "expected"),
    [
        ("clusters:0", {}, "expected tag:NAME or clusters:K"),
        ("sites", {}, "expected tag:NAME or clusters:K"),
        ("tag:", {}, "expected tag:NAME or clusters:K"),
        ("", {}, "without groups it is simulate"),
        ("tag:site", {"tag": "turn"}, "divided by tag 'turn'"),
        ("clusters:2", {"validation": 0.0}, "not validation 0"),
        ("clusters:2", {"attack": "alie:0.2"}, "know all updates of a round"),
        ("clusters:2", {"settings": {"strategy": {"name": "scaffold"}}}, "devices change theirs"),
        (
            "clusters:2",
            {"settings": {"mode": "asynchronous", "strategy": {"name": "fedbuff"}}},
            "not with mode asynchronous",
        ),
        ("tag:nothing", {}, "tag 'nothing': cannot be read"),
        ("tag:x", {}, "a whole number or a text for each of 7188 examples"),
        ("tag:site", {"devices": 3, "cohort": 3}, "has 4 values for 3 devices"),
        ("tag:/no/such.npy", {}, "cannot be read"),
    ],
)
def test_what_does_not_go_is_refused_by_name(
    tmp_path: Path, bundle: Bundle, data: Path, groups: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises((ConfigurationError, DataError), match=expected):
        grouped(tmp_path / "s", bundle, data, groups, **options)


def test_a_simulation_of_one_model_names_the_other_function(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="simulate_groups"):
        simulate(tmp_path / "s", groups="clusters:2", devices=4, cohort=4, fleet=fleet())


def test_the_command_line_tells_of_each_group(tmp_path: Path, data: Path) -> None:
    output = tmp_path / "runs"
    arguments = ["--data", str(data), "--tag", "site", "--clusters", "2", "--devices", "8", "--cohort", "8"]
    rest = ["--rounds", "2", "--partition", "iid", "--workers", "1", "--strategy", "median", "--output", str(output)]
    done = CliRunner().invoke(app, [*arguments, *rest])
    assert done.exit_code == 0, done.output
    assert "cluster-2" in done.output
    assert "worst tenth" in done.output
    assert (output / "groups" / "cluster-1" / "model" / "model.json").is_file()
    both = CliRunner().invoke(app, [*arguments, "--groups", "tag:site", "--output", str(tmp_path / "other")])
    assert "give one of them" in str(both.exception)
