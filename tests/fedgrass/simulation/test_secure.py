"""A simulation with secure aggregation: real masks, boxes, helpers and locks, and the model that plain rounds give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgrass.bundle import Bundle
from fedgrass.errors import ConfigurationError
from fedgrass.protocol.secure import encoded_key
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.helpers import parse_secure
from fedgrass.simulation.run import simulate
from tests.fedgrass.cloud.aggregator.updates import flat

OPTIONS: dict[str, Any] = {"devices": 20, "cohort": 8, "rounds": 3, "dropout": 0.25, "workers": 1, "partition": "iid"}


def test_masked_rounds_give_what_plain_rounds_give(tmp_path: Path) -> None:
    plain = simulate(tmp_path / "plain", fleet=FleetSettings(), **OPTIONS)
    settings = FleetSettings().overridden({"secure": parse_secure("3:1", 0)})
    masked = simulate(tmp_path / "masked", fleet=settings, **OPTIONS)
    assert masked.final.accuracy == pytest.approx(plain.final.accuracy, abs=0.003)
    assert masked.final.loss == pytest.approx(plain.final.loss, rel=0.01)
    assert masked.outcomes == plain.outcomes


def test_the_helpers_noise_is_what_central_noise_is_and_the_same_again(tmp_path: Path) -> None:
    options = {**OPTIONS, "devices": 8, "rounds": 1, "dropout": 0.0}
    # Without noise: devices clip as they do with it, and all count alike.
    changes: dict[str, dict[str, Any]] = {
        "plain": {"update": {"clip_norm": 0.5}, "strategy": {"options": {"weighting": "equal"}}},
        **{mode: {"privacy": {"mode": mode, "clip_norm": 0.5}} for mode in ("central", "distributed")},
    }
    changes["again"] = changes["distributed"]
    found = {}
    for name, change in changes.items():
        gate = {"tolerance": 1.0, "loss_tolerance": 1e9}
        settings = FleetSettings().overridden({"secure": parse_secure("3:1", 0), "gate": gate}).overridden(change)
        assert simulate(tmp_path / name, fleet=settings, **options).outcomes == {"released": 1}
        found[name] = flat(Bundle.open(tmp_path / name / "model").parameters()).astype(np.float64)
    # 25,530 parameters: 2 % are 4.5 standard errors. Of three helpers two suffice for z, as one may collude.
    for mode, more in (("central", 1.0), ("distributed", math.sqrt(3 / 2))):
        assert np.std(found[mode] - found["plain"]) == pytest.approx(more * 0.5 / 8, rel=0.02)
    # In the field a helper's noise follows from the set, whose boxes nobody can seed; a simulation's runs are alike.
    assert np.array_equal(found["again"], found["distributed"])


def test_a_median_of_groups_gets_over_an_attacker_that_one_sum_does_not(tmp_path: Path) -> None:
    # One device of 24 sends a thousand times what it learnt: which, and who is with it, hangs on the seed alone.
    options = {**OPTIONS, "devices": 24, "cohort": 24, "dropout": 0.0, "attack": "scale:0.05:1000"}
    losses = {}
    for name, changes in (("one", {}), ("groups", {"secure": {"groups": 4}, "strategy": {"name": "median"}})):
        settings = FleetSettings().overridden({"gate": {"tolerance": 1.0}, "secure": parse_secure("3:1", 0)})
        run = simulate(tmp_path / name, fleet=settings.overridden(changes), **options)
        losses[name] = run.final.loss, run.first.loss
    assert losses["groups"][0] < losses["groups"][1]
    assert losses["one"][0] >= losses["one"][1]  # the gate held every round


def test_keys_that_the_simulation_has_no_part_in_are_refused(tmp_path: Path) -> None:
    helpers = [{"name": f"h{i}", "key": encoded_key(bytes([i + 1]) * 32)} for i in range(3)]
    settings = FleetSettings().overridden({"secure": {"helpers": helpers}})
    with pytest.raises(ConfigurationError, match="no private key for that of 'h0'; let --secure make the helpers"):
        simulate(tmp_path / "run", fleet=settings, **OPTIONS)


@pytest.mark.parametrize("text", ["", "3", "3:1:8", "a:b", "33:1"])
def test_what_is_no_choice_of_helpers_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="expected HELPERS:COLLUDE"):
        parse_secure(text, 0)
