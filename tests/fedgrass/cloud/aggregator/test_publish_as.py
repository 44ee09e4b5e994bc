"""A bundle that is ready is published under another version, where the account has its own already."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgrass.bundle import Bundle
from fedgrass.cloud.aggregator.commands import renamed
from fedgrass.errors import ConfigurationError

DIGITS = Path(__file__).resolve().parents[4] / "examples/digits/bundle"


def test_a_bundle_under_another_version_is_the_same_but_for_that(tmp_path: Path) -> None:
    bundle = Bundle.open(DIGITS)
    copy = renamed(bundle, "2.0.0", tmp_path / "copy")
    assert Bundle.open(tmp_path / "copy").manifest == copy.manifest
    assert copy.manifest.version == "2.0.0"
    assert copy.manifest.model_copy(update={"version": bundle.manifest.version}) == bundle.manifest
    copy.verify()
    assert Bundle.open(DIGITS).manifest == bundle.manifest


@pytest.mark.parametrize("version", ["2", "2.1.0", "2.0", "v2.0.0", "2.0.0\n", "٢.0.0", ""])
def test_a_version_that_a_round_could_make_is_refused(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"expected MAJOR\.0\.PATCH"):
        renamed(Bundle.open(DIGITS), version, tmp_path / "copy")
