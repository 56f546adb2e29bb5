"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rtg_env.errors import RunError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place when it is complete and on disk; only its owner may read it.

    Raises:
        RunError: If it cannot be written; what stood there before stays.
    """
    scratch = None
    try:
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        scratch = None
    except OSError as error:
        raise RunError(
            f"expected to write {path}: {error}; free space or check permissions, then run the same command again"
        ) from error
    finally:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text so that it is there whole or not at all.

    Raises:
        RunError: If it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def whole_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder that takes its place when everything has been written into it.

    Args:
        path: Where it is to stand; its parent exists.
        force: Replace the folder that stands there; a kill between the two renames leaves it beside, as `.NAME-old`.

    Yields:
        Where to write.

    Raises:
        RunError: If it cannot be written, or something stands there that must not be replaced; it stays as it was.
    """
    scratch = None
    old = path.with_name(f".{path.name}-old")
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        yield scratch
        scratch.chmod(0o755)
        if force and path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(scratch, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"expected to write the folder {path}: {error}; free space or check permissions, then run the same command again"
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
