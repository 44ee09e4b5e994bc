"""What a trainer says of data that are not as they should be."""

from __future__ import annotations

from pathlib import Path

from fedgrass.protocol.names import RUNTIME
from tests.components.trainer.engine import QuickEngine
from tests.components.trainer.place import FLEET, Place
from tests.fedgrass.edge.digits import examples


def test_a_bad_row_is_left_out_of_the_training_and_is_what_the_device_reports(tmp_path: Path) -> None:
    QuickEngine.reset()
    x, y = examples()
    rows = [",".join(map(str, [*image.ravel(), label])) for image, label in zip(x[:50], y[:50], strict=True)]
    path = tmp_path / "digits.csv"
    path.write_text("\n".join([*rows[:30], "cold," + rows[30].split(",", 1)[1], *rows[31:]]) + "\n")
    place = Place(tmp_path)
    data = {"loader": "csv", "path": str(path), "validationFraction": "0.2"}
    place.ipc.configurations[RUNTIME] = {
        "fleet": FLEET,
        "engine": place.ipc.configurations[RUNTIME]["engine"],
        "data": data,
    }
    place.have_model()
    place.start()
    place.open(place.announcement(1))
    place.settle()
    said = place.until(lambda: place.statuses[-1].last_error, "told")
    place.stop()
    [notice] = place.notices
    assert (notice.status, notice.num_examples) == ("uploaded", 39)  # a fifth of 49 is kept for validation
    assert "1 of 50 rows left out" in said
    assert "row 31, column '1': 'cold' is not a number" in said
