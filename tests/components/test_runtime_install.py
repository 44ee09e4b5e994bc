"""What com.fedgrass.Runtime's install step does with the Pythons, pips and C libraries that hosts bring.

The packages are small wheels made here and found in the wheelhouse, so that nothing is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "components" / "runtime"
VERSIONS = Path.home() / ".pyenv" / "versions"
MODULES = ("numpy", "pydantic", "awscrt.io", "awsiot.greengrasscoreipc", "ai_edge_litert.interpreter")


def host(version: str) -> str:
    """The Python of a version on this machine; skips where there is none."""
    found = sorted(VERSIONS.glob(f"{version}.*/bin/python"))
    if found:
        return str(found[-1])
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pytest.skip(f"no Python {version} on this machine")


def wheel(folder: Path, module: str, content: str = "") -> tuple[str, str]:
    """Write a wheel of one module; return its name and digest."""
    name = module.split(".")[0].replace("_", "-")
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    parts = module.split(".")
    files = {f"{'/'.join(parts[: i + 1])}/__init__.py": "" for i in range(len(parts))}
    files[f"{'/'.join(parts)}/__init__.py"] = content
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{file},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for file, text in files.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record + f"{info}/RECORD,,\n"}).items():
            archive.writestr(file, text)
    return name, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An unpacked archive in ``source``, and the packages it names in the wheelhouse of ``work``."""
    runtime = tmp_path / "source" / "components" / "runtime"
    shutil.copytree(RUNTIME, runtime, ignore=shutil.ignore_patterns("greengrass-build"))
    (tmp_path / "source" / "fedgrass").mkdir()
    (tmp_path / "source" / "fedgrass" / "__init__.py").write_text("WORD = 'here'\n")
    (tmp_path / "work" / "wheelhouse").mkdir(parents=True)
    packages(tmp_path)
    return tmp_path


def packages(place: Path, *more: str, **contents: str) -> None:
    """Make the packages; a module's content by its name, with ``_`` for dots."""
    house = place / "work" / "wheelhouse"
    made = [wheel(house, module, contents.get(module.replace(".", "_"), "")) for module in (*MODULES, *more)]
    lines = "".join(f"{name}==1.0 --hash=sha256:{digest}\n" for name, digest in made)
    (place / "source" / "components" / "runtime" / "requirements.txt").write_text(lines)


def install(place: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = place / "source" / "components" / "runtime" / "install.py"
    return subprocess.run(
        [python, str(script), "--source", str(place / "source"), "--work", str(place / "work")],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(place), **environment},
    )


def module(place: Path, name: str, content: str) -> str:
    """A folder for PYTHONPATH that holds one module."""
    folder = place / "modules" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text(content)
    return str(folder)


def hidden(place: Path, *names: str) -> str:
    """A folder for PYTHONPATH with which the host has none of these modules."""
    content = (
        "import importlib.util, sys\n"
        "host = sys.prefix == sys.base_prefix\n"
        f"_find, _names = importlib.util.find_spec, {names!r}\n"
        "importlib.util.find_spec = lambda name, *rest: None if host and name in _names else _find(name, *rest)\n"
    )
    return module(place, "sitecustomize", content)


def says(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that the install ends with."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("runtime: "), done.stderr
    return last


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_the_hosts_own_pip_fills_the_venv_which_has_none(place: Path, version: str) -> None:
    done = install(place, host(version))
    assert done.returncode == 0, done.stderr
    assert '"runtime_ready"' in done.stdout
    code = "import fedgrass, ai_edge_litert.interpreter, importlib.util as u; print(fedgrass.WORD, u.find_spec('pip'))"
    python = place / "work" / "venv" / "bin" / "python"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=place).stdout
    assert told.split() == ["here", "None"]
    assert sorted(path.name for path in (place / "work").iterdir()) == ["library", "venv", "venvs", "wheelhouse"]
    assert not (place / ".cache").exists()
    again = install(place, host(version))
    assert (again.returncode, '"packages_in_place"' in again.stdout) == (0, True)


def test_a_pip_that_does_not_know_the_option_python_will_do(place: Path) -> None:
    old = (
        "import sys\n"
        "if '--python' in sys.argv:\n    sys.exit('no such option: --python')\n"
        "sys.path.remove(__import__('os').path.dirname(__file__))\n"
        "sys.modules.pop('pip', None)\n"
        "import runpy; runpy.run_module('pip', run_name='__main__')\n"
    )
    done = install(place, host("3.10"), PYTHONPATH=module(place, "pip", old))
    assert done.returncode == 0, done.stderr


def test_without_a_pip_the_one_of_ensurepip_is_used_and_not_kept(place: Path) -> None:
    done = install(place, host("3.11"), PYTHONPATH=hidden(place, "pip"))
    assert done.returncode == 0, done.stderr
    assert '"pip_borrowed"' in done.stdout
    assert list((place / "work").rglob("pip")) == []


@pytest.mark.parametrize("names", [("venv",), ("pip", "ensurepip"), ("venv", "pip", "ensurepip")], ids="-".join)
def test_what_is_missing_is_named_with_the_package_that_brings_it(place: Path, names: tuple[str, ...]) -> None:
    line = says(install(place, host("3.11"), PYTHONPATH=hidden(place, *names)))
    assert "apt install python3-venv" in line
    assert repr(names[0] if names[0] == "venv" else "ensurepip") in line


@pytest.mark.parametrize("version", ["3.6", "3.7", "3.8", "3.9"])
def test_a_python_that_is_too_old_is_told_so(place: Path, version: str) -> None:
    line = says(install(place, host(version)))
    assert f"Python {version}." in line
    assert "3.10 to 3.13" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "raise OSError('libstdc++.so.6: version `GLIBCXX_3.4.30 not found')",
            "OSError: libstdc++.so.6: version `GLIBCXX",
        ),
        ("raise ImportError('no library')", "ImportError: no library"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "signal 4"),
    ],
    ids=["OSError", "ImportError", "signal"],
)
@pytest.mark.parametrize("name", ["ai_edge_litert_interpreter", "awscrt_io"])
def test_what_cannot_be_loaded_is_not_ready(place: Path, name: str, content: str, said: str) -> None:
    packages(place, **{name: content})
    done = install(place, host("3.11"))
    line = says(done)
    assert said in line
    assert "ready" not in done.stdout + done.stderr
    for part in ("glibc", "-bit Python", f"Python {sys.version_info[0]}.", "needed: "):
        assert part in line
    packages(place)
    assert install(place, host("3.11")).returncode == 0


def test_what_an_engine_that_was_added_needs_is_loaded_too(place: Path) -> None:
    packages(place, "torch", torch="raise OSError('libcudart.so.13: cannot open shared object file')")
    assert "torch cannot be loaded here: OSError: libcudart.so.13" in says(install(place, host("3.11")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("import platform; platform.machine = lambda: 'armv7l'", "no wheels of LiteRT for this processor"),
        (
            "import platform, struct; platform.machine = lambda: 'aarch64'; struct.calcsize = lambda f: 4",
            "32-bit Python",
        ),
        ("import os; os.confstr = lambda name: (_ for _ in ()).throw(ValueError(name))", "no glibc (musl?)"),
        (
            "import os, platform; platform.machine = lambda: 'aarch64'; os.confstr = lambda name: 'glibc 2.28'",
            "cannot be loaded with this C library. This device: aarch64 (64-bit Python), glibc 2.28",
        ),
    ],
    ids=["armv7", "32-bit", "musl", "old glibc"],
)
def test_a_device_without_wheels_is_told_before_anything_is_made(place: Path, change: str, said: str) -> None:
    shutil.rmtree(place / "work")
    assert said in says(install(place, host("3.11"), PYTHONPATH=module(place, "sitecustomize", change)))
    assert not (place / "work").exists()


def test_a_file_that_is_not_there_and_a_full_disk_are_said_in_one_line(place: Path) -> None:
    requirements = place / "source" / "components" / "runtime" / "requirements.txt"
    requirements.rename(place / "aside")
    assert f"{requirements}: No such file or directory" in says(install(place, host("3.11")))
    (place / "aside").rename(requirements)
    full = module(
        place,
        "sitecustomize",
        "import shutil, collections\nshutil.disk_usage = lambda p: collections.namedtuple('U', 'free')(9 << 20)",
    )
    assert "9 MB of disk are free" in says(install(place, host("3.11"), PYTHONPATH=full))
