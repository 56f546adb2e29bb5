"""What a run leaves behind, and how it goes on after a kill.

    runs/NAME/config.json  goals.jsonl  run.db  population/  work/  report.html

Work is done in named units (a payoff cell, a training step, a check). A unit is in `run.db` whole or not at all, so the
same command goes on where it was: nothing finished is lost, repeated, or counted twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError, MissingExtraError, RunError
from rtg_env.files import write_text
from rtg_env.goals import GoalSet, to_jsonl
from rtg_env.transcripts import Played, TranscriptStore

IDENTITY: Final = "identity"
"""Block that says which model and judges a run works with."""

_GOALS: Final = "goals.jsonl"
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_RESERVED: Final = frozenset({"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))})


def default_name(method: str, settings: Mapping[str, Any]) -> str:
    """A name that follows from the settings: the same command finds the same run."""
    text = json.dumps(settings, sort_keys=True)
    return f"{method}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def checked_name(name: str) -> str:
    """A run name that is one plain folder name.

    Raises:
        ConfigError: If it is not.
    """
    if not _NAME.fullmatch(name) or name.split(".", maxsplit=1)[0].lower() in _RESERVED:
        raise ConfigError(
            f"expected a run name of 1 to 64 letters, digits, '.', '_' or '-' without a leading dot, got {name!r}"
        )
    return name


class RunDirectory:
    """One run on disk, locked while it is open.

    Args:
        root: Folder that holds runs.
        name: Name of this one.
        settings: Everything needed to repeat it; compared with what an existing run was made with.
        goals: For reading dialogues back.

    Raises:
        RunError: If the folder belongs to another config, another process holds it, or it cannot be written.
    """

    def __init__(self, root: Path, name: str, settings: Mapping[str, Any], goals: GoalSet) -> None:
        self.path = root / checked_name(name)
        if self.path.is_symlink():
            raise RunError(
                f"expected a plain folder for the run, {self.path} is a link; remove it or choose another --name"
            )
        self._lock = _acquire(self.path)
        try:
            self._refuse_links()
            self._settle_config(settings, goals)
            self._keep_goals(goals)
            self.store = TranscriptStore(self.path / "run.db", goals)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()
        self._lock.release()

    @property
    def population(self) -> Path:
        """Folder of the members."""
        return self.path / "population"

    @property
    def work(self) -> Path:
        """Folder of checkpoints; may be deleted once the run is finished."""
        return self.path / "work"

    def unit(self, name: str, play: Callable[[], list[Played]]) -> list[Played]:
        """The dialogues of a unit: read back if it is finished, else played and committed."""
        if not self.store.has_block(name):
            self.store.put_block(name, play())
        return self.store.block(name)

    def _settle_config(self, settings: Mapping[str, Any], goals: GoalSet) -> None:
        file = self.path / "config.json"
        wanted = json.loads(json.dumps(settings))
        if not file.exists():
            if (self.path / "run.db").exists():
                raise RunError(
                    f"expected config.json beside run.db in {self.path}, it is missing; choose another --name"
                )
            write_text(file, json.dumps(wanted, indent=1) + "\n")
            return
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(f"expected JSON in {file}, it is damaged ({error}); choose another --name") from None
        if found == wanted:
            return
        if self._has_work(goals):
            raise RunError(
                f"expected the run in {self.path} to have these settings, it was made with others "
                f"({_first_difference(found, wanted)}); choose another --name, or repeat the old command"
            )
        write_text(file, json.dumps(wanted, indent=1) + "\n")  # nothing was done under the other settings

    def _refuse_links(self) -> None:
        for child in self.path.iterdir():
            if child.is_symlink():
                raise RunError(f"expected plain files in the run directory, {child} is a link; remove it")

    def _keep_goals(self, goals: GoalSet) -> None:
        """The goals as they were played: a later report must not depend on a file that its owner may edit."""
        file = self.path / _GOALS
        if not file.exists() or read_goals(self.path).digest != goals.digest:
            write_text(file, to_jsonl(goals))

    def _has_work(self, goals: GoalSet) -> bool:
        database = self.path / "run.db"
        if not database.exists():
            return False
        with TranscriptStore(database, goals) as store:
            return any(name != IDENTITY for name in store.block_names())


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a run on disk.

    Raises:
        RunError: If there is no run, or its config cannot be understood.
    """
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"expected a run directory with config.json and run.db, got {str(path)!r} ({type(error).__name__})"
        ) from None
    if not isinstance(data, dict) or not (path / "run.db").is_file():
        raise RunError(f"expected a run directory with config.json and run.db, got {str(path)!r}")
    if not isinstance(data.get("config"), dict) or not isinstance(data.get("judge_id"), str):
        raise RunError(f"expected `config` and `judge_id` in {path / 'config.json'}; it was written by something else")
    return data


def read_goals(path: Path) -> GoalSet:
    """The goals that a run on disk was played with.

    Raises:
        RunError: If they are missing or damaged.
    """
    try:
        return goals_module.load(path / _GOALS)
    except ConfigError as error:
        raise RunError(f"expected the goals of the run in {path / _GOALS}: {error}") from None


def _acquire(path: Path) -> Any:
    try:
        import filelock
    except ImportError as error:
        raise MissingExtraError("filelock", "solve") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(str(path / ".lock"))
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"expected {path} to be free, another process works on it; wait for it or choose another --name"
        ) from None
    except OSError as error:
        raise RunError(f"expected to write into {path}: {error}; choose another folder with --runs") from error
    return lock


def _first_difference(found: Any, wanted: Any, where: str = "") -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(set(found) | set(wanted)):
            if found.get(key) != wanted.get(key):
                return _first_difference(found.get(key), wanted.get(key), f"{where}.{key}" if where else str(key))
    return f"{where} was {found!r}, now {wanted!r}"
