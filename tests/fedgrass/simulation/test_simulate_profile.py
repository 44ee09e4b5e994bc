"""The profile of virtual devices: the devices' and the job's own code, held against NumPy on all data in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedgrass
from fedgrass.cli import profiles
from fedgrass.data.digits import digits_bundle
from fedgrass.errors import ConfigurationError, DataError
from fedgrass.protocol.profile import Profile
from fedgrass.protocol.settings import FleetSettings
from fedgrass.simulation.commands import app
from fedgrass.simulation.examples import prepare
from fedgrass.simulation.run import start_of


def test_a_fleets_profile_is_that_of_its_data_in_one_place(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(5, 2, size=(400, 8, 8, 1)).astype(np.float32)
    y = (np.arange(400) % 10).astype(np.int32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    np.savez(tmp_path / "other.npz", x=x[:20], y=y[:20])
    profile = fedgrass.simulate_profile(
        digits_bundle(),
        tmp_path / "profile.json",
        data=str(tmp_path / "data.npz"),
        evaluation=str(tmp_path / "other.npz"),  # none of the data are held back
        devices=8,
        examples=0,
        partition="iid",
        statistics={"bins": 32},
    )
    assert profile == fedgrass.read_profile(tmp_path / "profile.json")
    assert (profile.devices, profile.examples, profile.misfits) == (8, 400, ())
    wide = x.reshape(400, 64).astype(np.float64)
    np.testing.assert_allclose(np.array([f.mean for f in profile.features], float), wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(np.array([f.variance for f in profile.features], float), wide.var(axis=0), rtol=1e-10)
    for at, feature in enumerate(profile.features):
        expected, _ = np.histogram(wide[:, at], 32)
        assert abs(np.array(feature.histogram[1:-1]) - expected).sum() <= 2  # a value on an edge
        for one in feature.quantiles:
            assert abs(one.value - np.quantile(wide[:, at], one.share, method="inverted_cdf")) <= one.error
    assert [label.count for label in profile.labels] == [40] * 10


@pytest.mark.parametrize("devices", [1, 5])
def test_missing_values_are_counted_as_devices_count_them(tmp_path: Path, devices: int) -> None:
    x = np.random.default_rng(0).normal(5, 2, size=(100, 8, 8, 1)).astype(np.float32)
    x[::3, 0, 0], x[::5, 0, 1], x[:, 0, 2] = np.nan, -np.inf, np.nan
    np.savez(tmp_path / "data.npz", x=x, y=(np.arange(100) % 10).astype(np.int32))
    options: dict[str, Any] = {
        "data": str(tmp_path / "data.npz"),
        "devices": devices,
        "examples": 0,
        "partition": "iid",
        "held_out": 0.01,
    }
    profile = fedgrass.simulate_profile(digits_bundle(), tmp_path / "profile.json", **options)
    held = np.random.default_rng((0, 0)).permutation(100)[:1]
    wide = np.delete(x.reshape(100, 64).astype(np.float64), held, axis=0)
    wide[np.isinf(wide)] = np.nan
    assert [feature.missing for feature in profile.features] == np.isnan(wide).sum(axis=0).tolist()
    assert profile.features[2].mean is None
    means = [feature.mean for feature in profile.features if feature.mean is not None]
    np.testing.assert_allclose(means, np.nanmean(np.delete(wide, 2, axis=1), axis=0), rtol=1e-12)


def test_virtual_devices_fill_a_tables_gaps_as_devices_do(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((40, 64)).round(3)
    cells = [["" if at == row % 64 else str(value) for at, value in enumerate(one)] for row, one in enumerate(x)]
    lines = [",".join([*one, str(row % 10)]) for row, one in enumerate(cells)]
    (tmp_path / "gaps.csv").write_text("\n".join([",".join([*(f"p{i}" for i in range(64)), "digit"]), *lines]))
    options = {"data": str(tmp_path / "gaps.csv"), "devices": 1, "cohort": 1, "examples": 0, "partition": "iid"}
    fleet = FleetSettings().overridden({"min_updates": 1})

    def rows(missing: str) -> Any:
        base, simulation = start_of(None, {**options, "missing": missing, "fleet": fleet})
        return prepare(simulation, base.manifest, tmp_path).rows(0).x.reshape(-1, 64)

    assert ((rows("0.5") == 0.5).sum(axis=1) >= 1).all()
    for missing in ("refuse", "median"):
        with pytest.raises((ConfigurationError, DataError), match="missing"):
            rows(missing)


def test_devices_that_are_only_unlike_are_not_flagged(tmp_path: Path) -> None:
    for partition in ("dirichlet:0.3", "shards:2"):
        profile = fedgrass.simulate_profile(
            digits_bundle(), tmp_path / "profile.json", devices=40, examples=40, partition=partition
        )
        assert (profile.misfits, profile.left_out) == ((), 0), partition


def test_the_command_shows_and_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["profile", "--devices", "6", "--examples", "20", "--set", "bins=16"])
    assert found.exit_code == 0, found.output
    assert "120 examples on 6 devices" in found.output
    assert "x[0,0,0]" in found.output
    assert (tmp_path / "profile.json").is_file()


def test_a_page_has_a_plot_and_escapes_names(tmp_path: Path) -> None:
    profile = fedgrass.simulate_profile(digits_bundle(), tmp_path / "profile.json", devices=5, examples=10)
    odd = profile.features[0].model_copy(update={"name": "<script>$x^{$"})
    profiles.write_page(profile.model_copy(update={"features": (odd, *profile.features[1:6])}), tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<script>" not in page
    assert "data:image/png;base64," in page


def test_wrong_options_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="bins"):
        fedgrass.simulate_profile(digits_bundle(), tmp_path / "p.json", devices=3, statistics={"bins": 0})
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(DataError, match=r"p\.json: not a profile"):
        fedgrass.read_profile(tmp_path / "p.json")
    with pytest.raises(DataError, match="cannot be read"):
        fedgrass.read_profile(tmp_path / "none.json")


def test_a_profile_survives_its_file() -> None:
    given = {
        "fleet": "mill",
        "round": 1,
        "made_at": "2026-01-01T00:00:00Z",
        "model": "1.0.0",
        "graph_sha256": "a" * 64,
        "devices": 0,
        "examples": 0,
        "features": [{"name": "a", "count": 0, "missing": 3}],
    }
    profile = Profile.model_validate(given)
    assert Profile.read(profile.to_json(), name="p") == profile
    assert profiles.bars(profile.features[0]) == ""


def test_noise_is_tried_without_a_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bounded = ["--set", "low=0", "--set", "high=1", "--set", "max_rows=20"]
    argv = ["profile", "--devices", "40", "--examples", "20", *bounded, "--set", "privacy.mode=central"]
    found = CliRunner().invoke(app, argv)
    assert found.exit_code == 0, found.output
    assert "noise of deviation" in found.output
    noisy = fedgrass.read_profile(tmp_path / "profile.json")
    assert noisy.noise is not None
    assert noisy.noise == pytest.approx(20 * (3 * 64 + 1) ** 0.5, rel=1e-3)
    assert noisy.examples == pytest.approx(800, abs=5 * noisy.noise * 67**0.5 / 8)
    with pytest.raises(DataError, match=r"statistics\.low"):
        fedgrass.simulate_profile(digits_bundle(), tmp_path / "p.json", devices=3, privacy={"mode": "local"})
    with pytest.raises(ConfigurationError, match="distributed"):
        fedgrass.simulate_profile(digits_bundle(), tmp_path / "p.json", devices=3, privacy={"mode": "distributed"})
