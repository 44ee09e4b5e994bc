"""What cannot go with secure aggregation is refused by name when the settings are made."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fedgrass.errors import ConfigurationError
from fedgrass.protocol.privacy import PrivacyLedger
from fedgrass.protocol.secure import encoded_key
from fedgrass.protocol.secure_settings import announced_secure
from fedgrass.protocol.settings import FleetSettings

SECURE = {"helpers": [{"name": f"h{i}", "key": encoded_key(bytes([i]) * 32)} for i in range(3)], "collude": 1}


def with_secure(**changes: Any) -> FleetSettings:
    return FleetSettings().overridden({"secure": SECURE, **changes})


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox"])
def test_means_and_server_steps_go_with_it(name: str) -> None:
    assert with_secure(strategy={"name": name}).secure is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(
            ({"strategy": {"name": name}}, f"strategy {name}: with secure the cloud sees sums only")
            for name in (
                "krum",
                "multi_krum",
                "median",
                "trimmed_mean",
                "bulyan",
                "geometric_median",
                "centered_clipping",
            )
        ),
        ({"strategy": {"name": "trust"}}, "strategy trust: with secure the cloud sees sums only"),
        ({"strategy": {"name": "fedbuff"}}, "takes late updates"),
        ({"strategy": {"name": "scaffold"}}, "strategy scaffold: with secure"),
        ({"strategy": {"name": "feddyn"}}, "strategy feddyn: with secure"),
        ({"strategy": {"name": "fednova"}}, "weighs by steps"),
        ({"strategy": {"name": "qfedavg"}}, "weighs by"),
        ({"strategy": {"name": "fedavg", "options": {"clip": {"norm": 1}}}}, "set update.clip_norm instead"),
        ({"checks": {"max_norm": 1}}, "checks.max_norm: with secure no single update"),
        ({"checks": {"max_norm_over_median": 3}}, "checks.max_norm_over_median"),
        ({"checks": {"clip_norm_over_median": 3}}, "checks.clip_norm_over_median"),
        ({"checks": {"max_examples_over_median": 2}}, "checks.max_examples_over_median"),
        ({"update": {"codec": "int8"}}, "update.codec int8"),
        ({"privacy": {"mode": "local"}}, "privacy.mode local"),
        ({"privacy": {"mode": "central", "adaptive_clip": {}}}, "privacy.adaptive_clip"),
        ({"privacy": {"mode": "distributed", "adaptive_clip": {}}}, "privacy.adaptive_clip"),
        ({"privacy": {"mode": "distributed", "figures": "exact"}}, "privacy.figures: with privacy.mode distributed"),
        ({"privacy": {"mode": "distributed"}, "task": "evaluate"}, "task evaluate: with privacy.mode distributed"),
        (
            {"privacy": {"mode": "distributed"}, "gate": {"devices_seconds": 60}},
            "gate.devices_seconds: with privacy.mode dist",
        ),
        ({"privacy": {"mode": "distributed"}, "secure": None}, "privacy.mode distributed: the helpers of secure"),
        ({"min_updates": 1}, "the sum of one update is that update"),
        ({"silos": ["123456789012-a"]}, "silos"),
        ({"secure": {**SECURE, "collude": 3}}, "all together open everything"),
        ({"secure": {**SECURE, "bits": 16, "most": 40000}}, "too narrow"),
        ({"secure": {**SECURE, "helper": 1}}, "there is no such setting"),
    ],
)
def test_what_needs_single_updates_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        with_secure(**changes)


GROUPED = {**SECURE, "groups": 4}


@pytest.mark.parametrize("mode", ["none", "distributed"])
@pytest.mark.parametrize(
    "name",
    ["krum", "multi_krum", "median", "trimmed_mean", "bulyan", "geometric_median", "centered_clipping", "trust"],
)
def test_with_groups_robust_strategies_go_with_it_and_bounds_hold_for_their_means(name: str, mode: str) -> None:
    checks = {"max_norm": 1, "max_norm_over_median": 3}
    found = with_secure(secure=GROUPED, strategy={"name": name}, checks=checks, privacy={"mode": mode})
    task = announced_secure(found, 100)
    assert task is not None
    assert (task.groups, task.group_min, task.least_summed) == (4, 3, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": {"name": "fedbuff"}}, "takes late updates"),
        ({"strategy": {"name": "scaffold"}}, "strategy scaffold: with secure"),
        ({"strategy": {"name": "feddyn"}}, "strategy feddyn: with secure"),
        ({"strategy": {"name": "fednova"}}, "weighs by steps"),
        ({"strategy": {"name": "qfedavg"}}, "weighs by"),
        ({"privacy": {"mode": "central"}}, "secure.groups: with privacy.mode central"),
        ({"privacy": {"mode": "local"}}, "privacy.mode local"),
        ({"secure": {**GROUPED, "groups": 101}}, "less than or equal to 100"),
        ({"secure": {**GROUPED, "group_min": 1}}, "greater than or equal to 2"),
    ],
)
def test_what_needs_single_updates_is_refused_with_groups_too(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        with_secure(**{"secure": GROUPED, **changes})


def test_bits_that_are_too_narrow_for_the_fleet_are_told_when_a_round_opens() -> None:
    settings = with_secure(secure={**SECURE, "bits": 16})
    task = announced_secure(settings, 300)
    assert task is not None
    assert (task.most, task.levels) == (300, 109)
    with pytest.raises(ConfigurationError, match=r"secure.*too narrow for the sum of 40000 devices"):
        announced_secure(settings, 40_000)


def test_with_central_privacy_all_count_alike_and_an_evaluation_has_no_masks() -> None:
    task = announced_secure(with_secure(privacy={"mode": "central"}), 9)
    assert task is not None
    assert task.equal
    assert announced_secure(with_secure(task="evaluate"), 9) is None


def test_settings_with_it_are_checked_without_numpy_and_cryptography() -> None:
    code = (
        "import sys; sys.modules['numpy'] = sys.modules['cryptography'] = None\n"
        "from fedgrass.protocol.settings import FleetSettings\n"
        "from fedgrass.protocol.secure_settings import announced_secure\n"
        f"announced_secure(FleetSettings().overridden({{'secure': {SECURE!r}}}), 5)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("most", "collude"), [(2, 1), (3, 2), (40, 1), (1000, 2)])
@pytest.mark.parametrize("noise", [1e-3, 0.5, 1.0, 40.0, 1e6])
def test_integers_have_room_for_the_sum_and_its_noise(bits: int, most: int, collude: int, noise: float) -> None:
    settings = with_secure(
        secure={**SECURE, "bits": bits, "most": most, "collude": collude},
        privacy={"mode": "central", "noise_multiplier": max(noise, 0.01), "clip_norm": noise / max(noise, 0.01)},
    )
    try:
        task = announced_secure(settings, 1)
    except ConfigurationError as error:
        assert "too narrow" in str(error)  # noqa: PT017 - either is right, by the numbers
        return
    assert task is not None
    steps = noise * task.levels / task.value_range
    assert steps <= task.noise_steps <= steps * (1 + 1e-9) + 1
    assert 8 <= task.noise_steps <= 1 << 26
    # Of p + 1 helpers that add noise each adds the whole, as p of them may take theirs off.
    assert most * task.levels + 8 * steps * (collude + 1) ** 0.5 <= ((1 << bits) - 1) / 2


def test_distributed_noise_is_announced_as_the_helpers_and_charged_as_central() -> None:
    distributed, central = (
        with_secure(privacy={"mode": mode, "noise_multiplier": 2.0, "clip_norm": 0.5})
        for mode in ("distributed", "central")
    )
    tasks = [announced_secure(one, 20) for one in (distributed, central)]
    assert [(task.noise, task.shared_noise, task.equal) for task in tasks if task] == [
        (1.0, True, True),
        (1.0, False, True),
    ]
    assert distributed.announced_update == central.announced_update
    assert distributed.announced_update.figures == "left_out"
    ledgers = [PrivacyLedger().charged(one.privacy, 1.0) for one in (distributed, central)]
    assert ledgers[0] == ledgers[1]


def test_a_width_that_is_too_narrow_for_the_noise_is_told() -> None:
    settings = with_secure(secure={**SECURE, "bits": 16}, privacy={"mode": "central", "noise_multiplier": 0.01})
    with pytest.raises(ConfigurationError, match=r"too narrow for noise of 0.01 on the sum of 300 devices"):
        announced_secure(settings, 300)
