"""Dialogues on disk: one SQLite file per run, written in blocks that exist whole or not at all.

A block is a unit of work (a payoff cell, a training step, a check). Its name is unique, so that a unit that was
finished is never counted twice and one that was cut off leaves nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

from rtg_env.engine import SCHEMA_VERSION, Transcript, action_from_json, verdict_from_json, verdict_to_json
from rtg_env.errors import RunError
from rtg_env.goals import GoalSet
from rtg_env.types import Exchange

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (name TEXT PRIMARY KEY, size INTEGER NOT NULL, data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dialogues (
    block TEXT NOT NULL REFERENCES blocks(name), position INTEGER NOT NULL,
    red TEXT NOT NULL, blue TEXT NOT NULL, seed TEXT NOT NULL, goal_id TEXT NOT NULL, harmful INTEGER NOT NULL,
    utility REAL, unscored INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY (block, position));
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


class TranscriptStore:
    """The dialogues of a run.

    Args:
        path: The SQLite file; created if missing.
        goals: The goals of the run, for reading dialogues back.

    Raises:
        RunError: If the file is damaged or of another schema.
    """

    def __init__(self, path: Path, goals: GoalSet) -> None:
        self._goals = goals
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
            (version,) = self._db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
        except sqlite3.Error as error:
            raise RunError(f"expected a run database in {path}, got one that SQLite cannot use: {error}; move it away") from error
        if version != str(SCHEMA_VERSION):
            raise RunError(f"expected schema version {SCHEMA_VERSION} in {path}, got {version}; read it with the release that wrote it")

    def __enter__(self) -> TranscriptStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
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
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (name, len(played), json.dumps(data or {})))
            self._db.executemany("INSERT INTO dialogues VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise RunError(
                f"expected to commit block {name!r} to {self._path}: {error}; nothing of it was written, "
                "free space or stop the other writer and run the same command again"
            ) from error

    def has_block(self, name: str) -> bool:
        """Whether this unit is finished."""
        return self._db.execute("SELECT 1 FROM blocks WHERE name = ?", (name,)).fetchone() is not None

    def block_names(self) -> list[str]:
        """Finished units in the order they were committed."""
        return [name for (name,) in self._db.execute("SELECT name FROM blocks ORDER BY rowid")]

    def block_data(self, name: str) -> dict[str, object]:
        """What was stored with a unit."""
        row = self._db.execute("SELECT data FROM blocks WHERE name = ?", (name,)).fetchone()
        return cast("dict[str, object]", json.loads(row[0])) if row else {}

    def block(self, name: str) -> list[Played]:
        """Dialogues of a unit, in order; empty if it is not finished."""
        query = "SELECT red, blue, seed, data FROM dialogues WHERE block = ? ORDER BY position"
        return [
            Played(red=red, blue=blue, seed=int(seed), transcript=transcript_from_json(json.loads(data), self._goals))
            for red, blue, seed, data in self._db.execute(query, (name,))
        ]

    def export_jsonl(self, path: Path) -> int:
        """Write every dialogue as one JSON line; returns how many."""
        count = 0
        query = "SELECT block, position, red, blue, seed, data FROM dialogues ORDER BY rowid"
        with path.open("w", encoding="utf-8") as file, closing(self._db.execute(query)) as cursor:
            for block, position, red, blue, seed, data in cursor:
                record = {"block": block, "position": position, "red": red, "blue": blue, "seed": int(seed), **json.loads(data)}
                file.write(json.dumps(record) + "\n")
                count += 1
        return count


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
        actions=tuple((agent, action_from_json(item)) for agent, item in cast("list[tuple[str, dict[str, object]]]", data["actions"])),
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
