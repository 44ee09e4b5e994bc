"""``python -m tests.end_to_end.photographs FOLDER``: the pictures in docs/console/, of a fleet that runs on this machine.

Four core devices learn the digits in twelve rounds; the thirteenth is open when the pictures are taken. It takes some
three minutes.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect
from rich.console import Console

from fedgrass.local.demo.run import Demo, DemoOptions
from tests.end_to_end.conftest import ROOT, Operator
from tests.fixtures.browser import PATIENCE_MS, chromium

_DEVICES, _ROUNDS = 4, 12
_SLOWLY = {"epochs": 1, "learning_rate": 0.05}  # so that the curves have something to show
_FOR_LONG = {"epochs": 400, "learning_rate": 0.05}  # so that the round is open while the pictures are taken
_SOME_UPDATES = re.compile(f"^[1-{_DEVICES}] of {_DEVICES} that end the collecting")
_PICTURES = {
    "rounds": ("/rounds/", "light", 1280, 900),
    "rounds-dark": ("/rounds/", "dark", 1280, 900),
    "phone": ("/rounds/", "light", 390, 844),
    "fleet": ("/", "light", 1280, 900),
    "round": (f"/rounds/{_ROUNDS}", "light", 1280, 900),
    "models": ("/models/", "light", 1280, 900),
    "settings": ("/settings/", "light", 1280, 800),
}


def main() -> None:
    """Run the fleet and photograph its pages into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    options = DemoOptions(devices=_DEVICES, rounds=1, seed=0)
    with (
        tempfile.TemporaryDirectory(prefix="fedgrass-") as state,
        Demo(options, Path(state), cache=ROOT / ".fedgrass" / "wheels", console=Console()) as demo,
    ):
        demo.start()
        operator = Operator(demo)
        for _ in range(_ROUNDS):
            record = operator.run_round(fit=_SLOWLY)
            print(f"round {record.round}: {record.outcome}, accuracy {record.accuracy}", flush=True)
        operator.start(fit=_FOR_LONG)
        _photograph(operator, folder)


def _photograph(operator: Operator, folder: Path) -> None:
    with chromium() as browser, operator.console() as address:
        for name, (page, scheme, width, height) in _PICTURES.items():
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
            )
            shown = context.new_page()
            shown.goto(address.rstrip("/") + page)
            if page == "/rounds/":
                expect(shown.get_by_text(_SOME_UPDATES)).to_be_visible(timeout=PATIENCE_MS)
            shown.screenshot(path=folder / f"{name}.png")
            context.close()


if __name__ == "__main__":
    main()
