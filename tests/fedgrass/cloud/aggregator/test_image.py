"""The image without Docker: what the Dockerfile copies is there, and is all that the job needs."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

from fedgrass.cloud.infrastructure.package import image_source
from tests.fixtures.places import ROOT

DOCKERFILE = (ROOT / "cloud/image/Dockerfile").read_text()


def test_the_image_s_code_is_all_that_the_job_imports(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(image_source())) as archive:
        archive.extractall(tmp_path)
    for copied in re.findall(r"^COPY (\S+) ", DOCKERFILE.replace("COPY --from=packages", ""), re.MULTILINE):
        assert (tmp_path / copied).exists(), copied
    code = (
        "import importlib, pathlib, sys\n"
        "for folder in ('fedgrass/cloud/aggregator', 'fedgrass/cloud/silo'):\n"
        "    for path in sorted(pathlib.Path(folder).rglob('*.py')):\n"
        "        if path.name not in ('commands.py', '__main__.py'):\n"
        "            importlib.import_module('.'.join(path.with_suffix('').parts).removesuffix('.__init__'))\n"
        "import fedgrass.cloud.aggregator; print(fedgrass.cloud.aggregator.__file__)\n"
        "foreign = {'tensorflow', 'moto', 'awsiot'} & set(sys.modules)\n"
        "assert not foreign, foreign\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_the_image_s_entry_point_says_what_it_lacks_under_the_container_contract(tmp_path: Path) -> None:
    [entry] = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    argv = [sys.executable, *yaml.safe_load(entry)[1:]]
    with zipfile.ZipFile(io.BytesIO(image_source())) as archive:
        archive.extractall(tmp_path / "code")
    ml = tmp_path / "ml"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "code"), "FEDGRASS_ML_ROOT": str(ml)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "FEDGRASS_FLEET" in (ml / "output" / "message").read_text()


def test_the_image_runs_as_root_for_what_sagemaker_mounts_and_every_package_is_pinned_by_its_hash() -> None:
    assert set(re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)) <= {"root", "0"}
    assert "--require-hashes" in DOCKERFILE
    locked = (ROOT / "cloud/image/requirements.txt").read_text()
    blocks = [block for block in re.split(r"\n(?=[a-z])", locked) if "==" in block]
    assert len(blocks) > 10
    assert all("--hash=sha256:" in block for block in blocks)
    assert not any(block.startswith(("tensorflow==", "awsiotsdk==", "stream-manager==")) for block in blocks)
