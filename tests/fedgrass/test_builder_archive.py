"""Code packed, and unpacked again: the same bytes for the same code, and nothing from an archive that is not as it should be."""

from __future__ import annotations

import hashlib
import io
import stat
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgrass import builder_archive
from fedgrass.builder_archive import pack_builder, unpack_builder
from fedgrass.engines.shipped import import_from
from fedgrass.errors import BundleError, ConfigurationError

NAMES = st.text(st.sampled_from("ab_é"), min_size=1, max_size=4)
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map(
        lambda parts: "/".join([*(f"d{p}" for p in parts[:-1]), f"f{parts[-1]}.py"])
    ),
    st.binary(max_size=200),
    min_size=1,
    max_size=6,
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@QUICK
@given(TREES)
def test_what_is_unpacked_is_what_was_packed_and_the_bytes_hang_on_names_and_contents_alone(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    place = tmp_path_factory.mktemp("code")
    one = pack_builder(write(place / "one", files))
    backwards = write(place / "two", dict(reversed(files.items())))
    write(backwards, {"__pycache__/x.pyc": b"1", ".git/HEAD": b"2", "left.pyc": b"3", "env/pyvenv.cfg": b"4"})
    assert pack_builder(backwards) == one
    sha256 = stored(place / "builder.zip", one)
    assert read(unpack_builder(place / "builder.zip", sha256, place / sha256)) == files


@QUICK
@given(st.binary(max_size=400), st.integers(0, 5), st.integers(0, 400))
def test_no_archive_however_damaged_does_more_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, kind: int, where: int
) -> None:
    place = tmp_path_factory.mktemp("code")
    good = pack_builder(write(place / "code", {"a.py": b"x = 1\n" * 20, "b/c.py": b""}))
    at = where % len(good)
    content = [noise, good[:at], good[:at] + noise + good[at + len(noise) :], good + noise, noise + good, good[at:]][
        kind
    ]
    sha256 = stored(place / "builder.zip", content)
    target = place / "in" / "unpacked"
    try:
        unpack_builder(place / "builder.zip", sha256, target)
    except BundleError:
        assert not target.exists()
    outside = [path for path in place.rglob("*") if path.is_file() and target not in path.parents]
    assert {path.relative_to(place).as_posix() for path in outside} == {"builder.zip", "code/a.py", "code/b/c.py"}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../evil.py", stat.S_IFREG),
        ("a/../../evil.py", stat.S_IFREG),
        ("/tmp/evil.py", stat.S_IFREG),
        ("a//b.py", stat.S_IFREG),
        ("./b.py", stat.S_IFREG),
        ("a\\..\\evil.py", stat.S_IFREG),
        ("c:evil.py", stat.S_IFREG),
        ("link.py", stat.S_IFLNK),
        ("pipe.py", stat.S_IFIFO),
    ],
)
def test_an_entry_that_could_lie_elsewhere_or_is_no_plain_file_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = (mode | 0o644) << 16
        archive.writestr(entry, "/etc/passwd")
    sha256 = stored(tmp_path / "builder.zip", packed.getvalue())
    with pytest.raises(BundleError, match="is not a plain file below"):
        unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "in" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["builder.zip"]


def test_a_bomb_is_refused_before_it_is_unpacked_and_so_are_two_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", bytes(5000))
    sha256 = stored(tmp_path / "builder.zip", packed.getvalue())
    unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "fits")
    monkeypatch.setattr(builder_archive, "MAX_BYTES", 4999)
    with pytest.raises(BundleError, match="more than"):
        unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "large")
    (tmp_path / "a.py").write_bytes(bytes(5000))
    with pytest.raises(ConfigurationError, match="leave data and results elsewhere"):
        pack_builder(tmp_path / "a.py")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a.py", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.py", b"2")
    sha256 = stored(tmp_path / "builder.zip", twice.getvalue())
    with pytest.raises(BundleError, match="twice"):
        unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "twice")


def test_what_was_altered_or_cut_short_on_the_device_is_unpacked_again(tmp_path: Path) -> None:
    sha256 = stored(tmp_path / "builder.zip", pack_builder(write(tmp_path / "code", {"a.py": b"x = 1", "b.py": b""})))
    target = unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "unpacked")
    (target / "a.py").write_text("x = 2")
    (target / "sitecustomize.py").write_text("import evil")
    (target / "b.py").unlink()
    unpack_builder(tmp_path / "builder.zip", sha256, target)
    assert read(target) == {"a.py": b"x = 1", "b.py": b""}
    with pytest.raises(BundleError, match="differs from its digest"):
        unpack_builder(tmp_path / "builder.zip", "0" * 64, target)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "holds no .py"),
        ({"random.py": b""}, "'random' would hide"),
        ({"fedgrass/engines/x.py": b""}, "'fedgrass' would hide"),
    ],
)
def test_code_that_could_not_work_is_refused_when_it_is_packed(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pack_builder(write(tmp_path / "code", files))


def test_links_and_wheels_for_a_processor_are_refused_and_one_of_plain_python_is_taken(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "pump-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pump/__init__.py", b"x = 1")
        wheel.writestr("pump-1.0.dist-info/METADATA", b"")
    sha256 = stored(tmp_path / "builder.zip", pack_builder(tmp_path / "pump-1.0-py3-none-any.whl"))
    unpacked = unpack_builder(tmp_path / "builder.zip", sha256, tmp_path / "unpacked")
    assert (unpacked / "pump" / "__init__.py").read_bytes() == b"x = 1"
    other = tmp_path / "pump-1.0-cp311-cp311-linux_x86_64.whl"
    other.write_bytes((tmp_path / "pump-1.0-py3-none-any.whl").read_bytes())
    with pytest.raises(ConfigurationError, match="one kind of processor"):
        pack_builder(other)
    folder = write(tmp_path / "code", {"a.py": b""})
    (folder / "b.py").symlink_to(folder / "a.py")
    with pytest.raises(ConfigurationError, match="is a link"):
        pack_builder(folder)


def test_modules_of_the_code_before_are_forgotten_with_it(tmp_path: Path) -> None:
    import importlib

    path = list(sys.path)
    for number in (1, 2):
        part = f"N = {number}".encode()
        write(tmp_path / str(number), {"of_code/part.py": part, "of_code_too.py": b"from of_code.part import N"})
    try:
        for number in (1, 2, 2, 1):
            import_from(tmp_path / str(number))
            assert number == importlib.import_module("of_code_too").N
    finally:
        import_from(None)
    assert sys.path == path
    assert not {"of_code", "of_code.part", "of_code_too"} & sys.modules.keys()
