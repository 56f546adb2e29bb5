"""Dialogues on disk: one SQLite file per run, written in blocks that exist whole or not at all.

A block is a unit of work (a payoff cell, a training step, a check). Its name is unique, so that a unit that was
finished is never counted twice and one that was cut off leaves nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

from rtg_env.dialogue import SCHEMA_VERSION, Transcript, action_from_json, verdict_from_json, verdict_to_json
from rtg_env.errors import RunError
from rtg_env.goals import GoalSet
from rtg_env.types import Exchange

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (name TEXT PRIMARY KEY, size INTEGER NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dialogues (
    block TEXT NOT NULL REFERENCES blocks(name), position INTEGER NOT NULL,
    red TEXT NOT NULL, blue TEXT NOT NULL, seed TEXT NOT NULL, goal_id TEXT NOT NULL, harmful INTEGER NOT NULL,
    utility REAL, unscored INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (block, position));
INSERT OR IGNORE INTO meta VALUES ('schema_version', '{SCHEMA_VERSION}');
COMMIT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A dialogue with who played it."""

    red: str
    """Version of red's policy."""

    blue: str
    """Version of blue's policy."""

    seed: int
    """Seed of the dialogue; with the policies and the deal it decides every sentence."""

    transcript: Transcript
    """What was said, judged and paid."""


class Record(NamedTuple):
    """A dialogue as it is stored."""

    position: int
    """Place in its block, from 0."""

    red: str
    """Version of red's policy."""

    blue: str
    """Version of blue's policy."""

    seed: int
    """Seed of the dialogue."""

    data: str
    """The dialogue by `transcript_to_json`, as text."""


class TranscriptStore:
    """The dialogues of a run.

    Args:
        path: The SQLite file; created if missing.
        goals: The goals of the run, for reading dialogues back.

    Raises:
        RunError: If the file is damaged or of another schema.
    """

    def __init__(self, path: Path, goals: GoalSet) -> None:
        self.goals = goals
        """The goals of the run."""
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> TranscriptStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def put_block(self, name: str, played: Sequence[Played], data: Mapping[str, object] | None = None) -> None:
        """Commit a finished unit of work: all of it in one transaction, or nothing.

        Args:
            name: Unique name of the unit.
            played: Its dialogues.
            data: Anything JSON that belongs to it (training figures).

        Raises:
            RunError: If the unit exists already or the disk is full; nothing was written then.
        """
        rows = [(name, position, *_columns(item)) for position, item in enumerate(played)]
        unit = (name, len(played), json.dumps(data or {}))
        try:
            with self._transaction():
                self._db.execute("INSERT INTO blocks VALUES (?, ?, ?)", unit)
                self._db.executemany("INSERT INTO dialogues VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.IntegrityError) and self.has_block(name):
                raise RunError(
                    f"expected a new block, {name!r} exists already in {self._path}; nothing was written, "
                    "a finished unit is never repeated: choose another name"
                ) from error
            raise RunError(
                f"expected to commit block {name!r} to {self._path}: {error}; nothing of it was written, "
                "free space or stop the other writer and run the same command again"
            ) from error

    def has_block(self, name: str) -> bool:
        """Whether this unit is finished."""
        return bool(list(self._rows("SELECT 1 FROM blocks WHERE name = ?", name)))

    def block_names(self) -> list[str]:
        """Finished units in the order they were committed."""
        return [name for (name,) in self._rows("SELECT name FROM blocks ORDER BY rowid")]

    def block_data(self, name: str) -> dict[str, object]:
        """What was stored with a unit."""
        rows = list(self._rows("SELECT data FROM blocks WHERE name = ?", name))
        return cast("dict[str, object]", json.loads(rows[0][0])) if rows else {}

    def block(self, name: str) -> list[Played]:
        """Dialogues of a unit, in order; empty if it is not finished."""
        return [
            Played(
                red=record.red,
                blue=record.blue,
                seed=record.seed,
                transcript=transcript_from_json(json.loads(record.data), self.goals),
            )
            for record in self.records(name)
        ]

    def records(self, name: str) -> Iterator[Record]:
        """Dialogues of a unit as they are stored, one at a time: a large one need not fit into memory."""
        query = "SELECT position, red, blue, seed, data FROM dialogues WHERE block = ? ORDER BY position"
        for position, red, blue, seed, data in self._rows(query, name):
            yield Record(position, red, blue, int(seed), data)

    def _open(self) -> None:
        """Check whose file this is before anything is written to it."""
        try:
            if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
            version = row[0] if row else None
            if version != str(SCHEMA_VERSION):
                raise RunError(
                    f"expected schema version {SCHEMA_VERSION} in {self._path}, got {version}; "
                    "read it with the release that wrote it"
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:  # an interrupt too must not leave half a block in an open transaction
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _rows(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        try:
            # `yield from` would close the cursor of an abandoned reader, which fails once the file is closed.
            for row in self._db.execute(query, values):  # noqa: UP028
                yield row
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error


def _unusable(path: Path, error: sqlite3.Error) -> RunError:
    return RunError(f"expected a run database in {path}, got one that SQLite cannot use: {error}; move it away")


def transcript_to_json(transcript: Transcript) -> dict[str, object]:
    """A dialogue as JSON; the goal by id."""
    return {
        "schema_version": SCHEMA_VERSION,
        "goal_id": transcript.goal.id,
        "red_order": list(transcript.red_order),
        "exchanges": [[exchange.red, exchange.blue] for exchange in transcript.exchanges],
        "verdicts": [verdict_to_json(verdict) for verdict in transcript.verdicts],
        "actions": [[agent, asdict(action)] for agent, action in transcript.actions],
        "utilities": list(transcript.utilities),
        "payments": list(transcript.payments),
        "utility": None if transcript.utility != transcript.utility else transcript.utility,
        "unscored": transcript.unscored,
    }


def transcript_from_json(data: Mapping[str, object], goals: GoalSet) -> Transcript:
    """Inverse of `transcript_to_json`."""
    utility = data["utility"]
    return Transcript(
        goal=goals.by_id(str(data["goal_id"])),
        red_order=tuple(cast("list[int]", data["red_order"])),
        exchanges=tuple(Exchange(red=red, blue=blue) for red, blue in cast("list[list[str]]", data["exchanges"])),
        verdicts=tuple(verdict_from_json(item) for item in cast("list[dict[str, object]]", data["verdicts"])),
        actions=tuple(
            (agent, action_from_json(item))
            for agent, item in cast("list[tuple[str, dict[str, object]]]", data["actions"])
        ),
        utilities=tuple(cast("list[float]", data["utilities"])),
        payments=tuple(cast("list[float]", data["payments"])),
        utility=float("nan") if utility is None else float(cast("float", utility)),
        unscored=bool(data["unscored"]),
    )


def _columns(item: Played) -> tuple[object, ...]:
    transcript = item.transcript
    record = transcript_to_json(transcript)
    return (
        item.red,
        item.blue,
        str(item.seed),
        transcript.goal.id,
        int(transcript.goal.harmful),
        record["utility"],
        int(transcript.unscored),
        json.dumps(record),
    )
