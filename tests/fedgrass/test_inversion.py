"""The attack that reads an image off an update: it wins where nothing hides it, and loses where floors, masks or noise do."""

from __future__ import annotations

from pathlib import Path

from benchmarks.inversion import measured


def test_an_image_is_read_off_an_update_unless_the_device_declines_or_noise_or_a_mask_hides_it(tmp_path: Path) -> None:
    found = measured(tmp_path / "model")
    recovered = {name: case["recovered"] for name, case in found.items()}
    assert recovered["none, one example, no floors (before)"]
    assert found["none, one example, no floors (before)"]["cosine"] > 0.9999
    assert recovered["central, the operator, one example, no floors"], "the operator is trusted there, and needs to be"
    assert "minExamples" in found["none, one example, the device's floors"]["declined"]
    for hidden in (
        "none, one example, the device's floors",
        "central, who sees the model, one example of 10 devices each",
        "local, one example, no floors",
        "secure, a device's masked upload, one example, no floors",
    ):
        assert not recovered[hidden], hidden
