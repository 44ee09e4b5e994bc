"""Strategies of which devices do a part: from the fleet's settings over the announcement to the update file, and into the sum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedgrass import tensors
from fedgrass.bundle import Bundle, Parameters
from fedgrass.cloud.aggregator.offline import aggregate_folder
from fedgrass.data import Split, split
from fedgrass.engines.base import FitState, Hooks
from fedgrass.engines.litert import LiteRTEngine
from fedgrass.own_code import Passing
from fedgrass.protocol.check_settings import Checks
from fedgrass.protocol.messages import Announcement
from fedgrass.strategies import strategy_named
from fedgrass.training import TrainingFiles, train
from fedgrass.update.header import UpdateHeader
from tests.fedgrass.cloud.rounds.harness import Fleet
from tests.fedgrass.edge import digits

BUNDLE = Bundle.open(digits.BUNDLE)
LEARNING_RATE, MU = 0.05, 3.0


class KilledError(Passing):
    """Stands for kill -9."""


def data(count: int) -> Split:
    x, y = digits.examples()
    return split(x[:count], y[:count], validation_fraction=0, seed=0)


def updates(announcement: Announcement, thing: str, folder: Path, count: int = 64, hooks: Hooks | None = None) -> Path:
    """Do a device's part."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{thing}.safetensors"
    train(
        lambda: LiteRTEngine(BUNDLE),
        BUNDLE,
        data(count),
        announcement,
        thing,
        TrainingFiles(path, folder / f".{thing}.checkpoint"),
        hooks=hooks,
    )
    return path


def announced(fleet: Fleet, **settings: Any) -> Announcement:
    """What devices hear when a round with these settings opens; each time it is the fleet's first."""
    fleet.open(**settings)
    return Announcement.decode(fleet.announcement or b"")


def test_the_proximal_term_of_the_settings_is_in_what_a_device_sends(fleet: Fleet, tmp_path: Path) -> None:
    fit = {"learning_rate": LEARNING_RATE, "proximal_mu": MU, "max_examples": 2 * BUNDLE.manifest.batch_size}
    heard = announced(fleet, strategy={"name": "fedprox"}, fit=fit)

    def sent(folder: str, **changes: Any) -> Parameters:
        changed = heard.model_copy(update={"fit": heard.fit.model_copy(update=changes)})
        return tensors.load(updates(changed, "a", tmp_path / folder))[0]

    one = sent("one step", max_examples=BUNDLE.manifest.batch_size, proximal_mu=0.0)
    two = sent("two steps", proximal_mu=0.0)
    found = sent("as announced")
    for name in BUNDLE.parameters():
        # The first step is at the base, where the term is zero; the second is pulled back along what the first one did.
        np.testing.assert_allclose(found[name], two[name] - LEARNING_RATE * MU * one[name], rtol=1e-3, atol=1e-6)
    assert any(np.abs(found[name] - two[name]).max() > 1e-4 for name in found)


def test_fednova_takes_the_steps_of_the_whole_training_also_after_a_restart(fleet: Fleet, tmp_path: Path) -> None:
    heard = announced(fleet, strategy={"name": "fednova"}, fit={"learning_rate": LEARNING_RATE, "epochs": 2})
    folder = tmp_path / "updates"

    def kill(state: FitState) -> None:
        if state.epoch == 1:
            raise KilledError

    try:
        updates(heard, "killed", folder, 64, Hooks(after_epoch=kill))
    except KilledError:
        updates(heard, "killed", folder, 64)
    updates(heard, "small", folder, 16)
    updates(heard, "large", folder, 150)
    steps, examples, deltas = {}, {}, {}
    for path in folder.glob("*.safetensors"):
        values, metadata = tensors.load(path)
        said = UpdateHeader.from_metadata(metadata)
        deltas[path.stem] = np.concatenate([value.ravel() for value in values.values()]).astype(np.float64)
        steps[path.stem], examples[path.stem] = said.metrics["steps"], said.num_examples
    assert steps == {"killed": 2 * 4, "small": 2 * 1, "large": 2 * 10}
    unbounded = Checks(max_examples_over_median=0)  # as devices claim them, so that the formula shows
    found = aggregate_folder(BUNDLE.folder, folder, tmp_path / "out", strategy_named("fednova"), checks=unbounded)
    assert found.parameters is not None
    assert found.quarantined == ()
    total = sum(examples.values())
    mean_steps = sum(examples[thing] * steps[thing] for thing in steps) / total
    wanted = mean_steps * sum(examples[thing] / total * deltas[thing] / steps[thing] for thing in steps)
    made = np.concatenate([(found.parameters[n] - v).ravel() for n, v in BUNDLE.parameters().items()])
    np.testing.assert_allclose(made, wanted, rtol=1e-3, atol=2e-7)
