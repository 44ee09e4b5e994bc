from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from fedgrass.cloud.infrastructure.package import functions_archive


def test_the_same_sources_give_the_same_archive() -> None:
    assert functions_archive(dependencies=False) == functions_archive(dependencies=False)


def test_the_archive_holds_what_the_functions_import_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(functions_archive(dependencies=False))) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert {name.split("/")[0] for name in names} == {"fedgrass"}
    assert not any(name.startswith(("fedgrass/cloud/aggregator", "fedgrass/bundle")) for name in names)
    code = (
        "import sys, importlib, pathlib\n"
        "for path in sorted(pathlib.Path('fedgrass/cloud/rounds').glob('*.py')):\n"
        "    importlib.import_module(f'fedgrass.cloud.rounds.{path.stem}')\n"
        "from fedgrass.protocol.settings import FleetSettings\n"
        "from fedgrass.strategies import STRATEGIES\n"
        "for name in STRATEGIES.built_in():\n"
        "    privacy = {'mode': 'central'} if name == 'dp_ftrl' else {}\n"  # it is refused without
        "    FleetSettings.model_validate({'strategy': {'name': name}, 'privacy': privacy})\n"
        "    importlib.import_module(f'fedgrass.strategies.{name}')\n"
        "assert len(STRATEGIES.built_in()) > 16\n"
        "foreign = {'numpy', 'typer', 'moto', 'awsiot', 'stream_manager', 'tensorflow'} & set(sys.modules)\n"
        "assert not foreign, foreign\n"
        "import fedgrass.cloud.rounds; print(fedgrass.cloud.rounds.__file__)\n"
    )
    # Run elsewhere than in this checkout, so that what the archive lacks is missed.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
