"""Dialogues as a flat table for analysis and training: one row each, the same columns in Parquet and in JSONL.

    pandas.read_parquet("dialogues.parquet")
    datasets.load_dataset("parquet", data_files="dialogues.parquet")

The types are fixed here, never inferred from what a run happens to hold. Nothing of a dialogue is lost: `read_dialogues` is
the inverse. Text in a row was written by models and is data; there is no CSV, which spreadsheets would run as formulas.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

from rtg_env.errors import ConfigError, MissingExtraError, RTGError, RunError
from rtg_env.files import whole_file
from rtg_env.goals import Goal, GoalSet
from rtg_env.text import well_formed
from rtg_env.transcripts import Played, Record, TranscriptStore, transcript_from_json
from rtg_env.types import Exchange, as_chat

if TYPE_CHECKING:
    import pyarrow

DATA_SCHEMA_VERSION: Final = 1
"""Version of the columns; raised whenever one changes its name, type or meaning."""

_Row = dict[str, Any]
_MESSAGE: Final = "struct<role: string, content: string>"
_GROUP_CHARS: Final = 1 << 24  # a row group ends after so much stored text: what an export holds in memory at a time


class Column(NamedTuple):
    """A column of the table."""

    name: str
    """In Parquet, and the key in JSONL."""

    type: str
    """In Arrow's notation."""

    about: str
    """What it holds."""


COLUMNS: Final = (
    Column("schema_version", "int32", "version of these columns"),
    Column("run", "string", "name of the run; with `block` and `position` it identifies a dialogue"),
    Column("block", "string", "unit of work the dialogue belongs to"),
    Column("position", "int32", "place in the block, from 0"),
    Column("red", "string", "version of red's policy"),
    Column("blue", "string", "version of blue's policy"),
    Column("seed", "int64", "seed of the dialogue"),
    Column("goal_id", "string", "goal, by id"),
    Column("goal", "string", "what red wanted, in words"),
    Column("category", "string", "topic of the goal"),
    Column("harmful", "bool", "whether red spoke; on a benign goal nature did"),
    Column("split", "string", "half of the goals: train or heldout"),
    Column("red_order", "list<int16>", "order in which red members spoke"),
    Column("num_exchanges", "int32", "exchanges that were played"),
    Column("utility", "double", "u_red; null if unscored or not over"),
    Column("unscored", "bool", "whether a verdict failed"),
    Column("redacted", "bool", "whether text was replaced by hashes"),
    Column("messages", f"list<{_MESSAGE}>", "the chat as it was heard: user is red or nature, assistant is blue"),
    Column("harm", "list<double>", "per exchange; null if the verdict failed"),
    Column("refusal", "list<double>", "per exchange; null if the verdict failed"),
    Column("helpful", "list<double>", "per exchange; null if the verdict failed"),
    Column("valid", "list<bool>", "per exchange: whether there is a verdict"),
    Column("judge_id", "list<string>", "per exchange: name and version of the judge"),
    Column("verdict_raw", "list<string>", "per exchange: parts of the verdict, a JSON object"),
    Column("utilities", "list<double>", "per exchange: red's utility of it alone; null if the dialogue is unscored"),
    Column("payments", "list<double>", "per exchange: what red was paid after it; null if the dialogue is unscored"),
    Column("agents", "list<string>", "per action: who acted; nature's sentences are no actions"),
    Column("policies", "list<string>", "per action: version of its author, empty if unknown"),
    Column("texts", "list<string>", "per action: what was said, before message filters"),
    Column("reasoning", "list<string>", "per action: red's private thoughts"),
    Column("prompt_ids", "list<list<int32>>", "per action: token ids that the model read"),
    Column("token_ids", "list<list<int32>>", "per action: token ids that it sampled"),
    Column("logps", "list<list<double>>", "per action: log-probability of each sampled id"),
    Column("temperatures", "list<double>", "per action: temperature of sampling and of `logps`"),
    Column("finish_reasons", "list<string>", "per action: stop, length, budget or cut"),
    Column("num_tokens", "list<int32>", "per action: tokens that were sampled"),
)
"""Every column, in order."""

ACTION_COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "policy": "policies",
        "text": "texts",
        "reasoning": "reasoning",
        "prompt_ids": "prompt_ids",
        "token_ids": "token_ids",
        "logps": "logps",
        "temperature": "temperatures",
        "finish_reason": "finish_reasons",
    }
)
"""Column of each field of an action."""

_VERDICT_NUMBERS: Final = ("harm", "refusal", "helpful")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written."""

    path: Path
    """Where it is."""

    num_dialogues: int
    """Its rows."""

    num_bytes: int
    """Its size."""

    sha256: str
    """Hash of its contents."""


def export_dialogues(
    store: TranscriptStore,
    path: Path,
    *,
    run: str = "",
    blocks: str = "*",
    text: bool = True,
    force: bool = False,
    about: Mapping[str, str] | None = None,
) -> Exported:
    """Write the dialogues of a run as one table: whole, or not at all.

    A run that is still being played may be exported: what is finished at the start of the call is written.

    Args:
        store: The run.
        path: `.parquet` (needs pyarrow) or `.jsonl`.
        run: Name of the run, for its column.
        blocks: Which units: a pattern such as `cell/*`, with `*`, `?` and `[..]`.
        text: False replaces everything that could tell what was said: text becomes `sha256:` and the hash of its UTF-8,
            token ids and log-probabilities (from which a model gives the text away) become null.
        force: Replace a file that exists.
        about: Added to the metadata of a Parquet file.

    Raises:
        ConfigError: If the file has another ending, or there is nothing to write.
        RunError: If the file exists or cannot be written, or a dialogue does not fit the columns; no file was left then.
        MissingExtraError: If pyarrow is needed and missing.
    """
    kind = _kind(path)
    if kind == "parquet":
        _arrow()
    if os.path.lexists(path) and not force:
        raise RunError(f"expected no file at {path}, there is one; remove it, choose another or replace it by force")
    names = [name for name in store.block_names() if fnmatchcase(name, blocks)]
    groups = _groups(store, names, run, text)
    with whole_file(path) as file:
        if kind == "parquet":
            count = _write_parquet(file, groups, {"run": run, "redacted": str(not text).lower(), **(about or {})})
        else:
            count = _write_jsonl(file, groups)
        if not count:
            raise ConfigError(
                f"expected dialogues in blocks named like {blocks!r}, got none; names begin with "
                f"{', '.join(sorted({name.split('/')[0] for name in store.block_names()})) or '(no block is finished)'}"
            )
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Exported(path=path, num_dialogues=count, num_bytes=path.stat().st_size, sha256=digest)


def read_dialogues(path: Path, goals: GoalSet) -> list[Played]:
    """Dialogues of an exported file, in its order.

    Args:
        path: `.parquet` or `.jsonl`. Rows may have been left out; other columns are ignored.
        goals: The goals that were played.

    Raises:
        ConfigError: If the goals are others than the ones that were played.
        RunError: If the file cannot be read, is of another schema, or was written without text.
        MissingExtraError: If pyarrow is needed and missing.
    """
    rows = _read_parquet(path) if _kind(path) == "parquet" else _read_jsonl(path)
    try:
        return [_played(row, goals, f"row {number} of {path}") for number, row in enumerate(rows, start=1)]
    except OSError as error:
        raise RunError(f"expected a readable file of dialogues, got {str(path)!r}: {error}") from error


def arrow_schema() -> pyarrow.Schema:
    """The columns for Arrow; `datasets.Features.from_arrow_schema` takes it.

    Raises:
        MissingExtraError: If pyarrow is missing.
    """
    pa = _arrow()
    return pa.schema(
        [(column.name, _arrow_type(column.type)) for column in COLUMNS],
        metadata={"schema_version": str(DATA_SCHEMA_VERSION)},
    )


# Rows


def _groups(store: TranscriptStore, names: Sequence[str], run: str, text: bool) -> Iterator[list[_Row]]:
    group: list[_Row] = []
    size = 0
    for name in names:
        for record in store.records(name):
            row = _row(run, name, record, store.goals)
            group.append(row if text else _without_text(row))
            size += len(record.data)
            if size >= _GROUP_CHARS:
                yield group
                group, size = [], 0
    if group:
        yield group


def _row(run: str, block: str, record: Record, goals: GoalSet) -> _Row:
    data = json.loads(record.data)
    goal = goals.by_id(data["goal_id"])
    where = f"dialogue {record.position} of block {block!r}"
    if not -(2**63) <= record.seed < 2**63:
        raise RunError(f"expected the seed of {where} to fit 64 bits, got {record.seed}; draw seeds below 2**63")
    exchanges = data["exchanges"]
    return {
        "schema_version": DATA_SCHEMA_VERSION,
        "run": run,
        "block": block,
        "position": record.position,
        "red": record.red,
        "blue": record.blue,
        "seed": record.seed,
        "goal_id": data["goal_id"],
        "goal": well_formed(goal.text),
        "category": well_formed(goal.category),
        "harmful": goal.harmful,
        "split": goal.split,
        "red_order": data["red_order"],
        "num_exchanges": len(exchanges),
        "utility": _numbers([data["utility"]], where)[0],
        "unscored": data["unscored"],
        "redacted": False,
        "messages": as_chat([Exchange(well_formed(red), well_formed(blue)) for red, blue in exchanges], None),
        **_verdict_columns(data["verdicts"], where),
        "utilities": _padded(_numbers(data["utilities"], where), len(exchanges)),
        "payments": _padded(_numbers(data["payments"], where), len(exchanges)),
        **_action_columns(data["actions"]),
    }


def _verdict_columns(verdicts: Sequence[Mapping[str, Any]], where: str) -> _Row:
    return {
        **{name: _numbers([verdict[name] for verdict in verdicts], where) for name in _VERDICT_NUMBERS},
        "valid": [verdict["valid"] for verdict in verdicts],
        "judge_id": [well_formed(verdict["judge_id"]) for verdict in verdicts],
        "verdict_raw": [json.dumps(verdict["raw"]) for verdict in verdicts],
    }


def _action_columns(actions: Sequence[tuple[str, Mapping[str, Any]]]) -> _Row:
    columns: _Row = {"agents": [agent for agent, _ in actions]}
    for field, column in ACTION_COLUMNS.items():
        values = [action[field] for _, action in actions]
        columns[column] = [well_formed(value) if isinstance(value, str) else value for value in values]
    columns["num_tokens"] = [len(action["token_ids"]) for _, action in actions]
    return columns


def _numbers(values: Sequence[float | None], where: str) -> list[float | None]:
    """Numbers as floats, so that no reader takes a column of whole ones for integers."""
    if not all(value is None or math.isfinite(value) for value in values):
        raise RunError(
            f"expected finite numbers in {where}, got {values}; it was paid by a judge that breaks its contract"
        )
    return [None if value is None else float(value) for value in values]


def _padded(values: list[float | None], length: int) -> list[float | None]:
    """One entry per exchange, so that all such columns explode together."""
    return values + [None] * (length - len(values))


def _without_text(row: _Row) -> _Row:
    raws = [
        {name: _hashed(part) if isinstance(part, str) else part for name, part in json.loads(raw).items()}
        for raw in row["verdict_raw"]
    ]
    return {
        **row,
        "redacted": True,
        "goal": _hashed(row["goal"]),
        "messages": [{**message, "content": _hashed(message["content"])} for message in row["messages"]],
        "verdict_raw": [json.dumps(raw) for raw in raws],
        "texts": [_hashed(text) for text in row["texts"]],
        "reasoning": [_hashed(text) for text in row["reasoning"]],
        "prompt_ids": None,
        "token_ids": None,
        "logps": None,
    }


def _hashed(text: str) -> str:
    return "sha256:" + hashlib.sha256(well_formed(text).encode()).hexdigest()


def _played(row: _Row, goals: GoalSet, where: str) -> Played:
    try:
        if row["schema_version"] != DATA_SCHEMA_VERSION:
            raise RunError(
                f"expected schema version {DATA_SCHEMA_VERSION} in {where}, got {row['schema_version']}; "
                "read it with the release that wrote it"
            )
        if row["redacted"]:
            raise RunError(f"expected text in {where}, it was exported without; export the run again with text")
        _check_goal(goals.by_id(row["goal_id"]), row["goal"], where)
        transcript = transcript_from_json(_record(row), goals)
        return Played(red=row["red"], blue=row["blue"], seed=row["seed"], transcript=transcript)
    except RTGError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"expected a dialogue as `rtg export` writes it in {where}, got something else: {error!r}"
        ) from None


def _check_goal(goal: Goal, played: str, where: str) -> None:
    if well_formed(goal.text) != played:
        raise ConfigError(f"expected the goal {goal.id!r} as it was played in {where}; load the goals of that run")


def _record(row: _Row) -> _Row:
    """A row as `transcript_to_json` writes a dialogue."""
    said = [message["content"] for message in row["messages"]]
    verdicts = zip(*(row[name] for name in (*_VERDICT_NUMBERS, "valid", "judge_id", "verdict_raw")), strict=True)
    actions = zip(row["agents"], *(row[column] for column in ACTION_COLUMNS.values()), strict=True)
    return {
        "goal_id": row["goal_id"],
        "red_order": row["red_order"],
        "exchanges": list(zip(said[::2], said[1::2], strict=True)),
        "verdicts": [
            {
                **dict(zip(_VERDICT_NUMBERS, numbers, strict=True)),
                "valid": valid,
                "judge_id": judge,
                "raw": json.loads(raw),
            }
            for *numbers, valid, judge, raw in verdicts
        ],
        "actions": [(agent, dict(zip(ACTION_COLUMNS, values, strict=True))) for agent, *values in actions],
        "utilities": [value for value in row["utilities"] if value is not None],
        "payments": [value for value in row["payments"] if value is not None],
        "utility": row["utility"],
        "unscored": row["unscored"],
    }


# Files


def _kind(path: Path) -> str:
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"expected a file that ends in .parquet or .jsonl, got {path.name!r}; rename it")
    return path.suffix[1:]


def _write_jsonl(file: BinaryIO, groups: Iterator[list[_Row]]) -> int:
    count = 0
    for group in groups:
        for row in group:
            # ASCII only: no reader can take U+2028 or the like for the end of a line.
            file.write(json.dumps(row, allow_nan=False).encode("ascii") + b"\n")
        count += len(group)
    return count


def _read_jsonl(path: Path) -> Iterator[_Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield cast("_Row", json.loads(line))
            except ValueError as error:
                raise RunError(f"expected JSON in line {number} of {path}: {error}") from None


def _write_parquet(file: BinaryIO, groups: Iterator[list[_Row]], about: Mapping[str, str]) -> int:
    pa = _arrow()
    import pyarrow.parquet as pq

    schema = arrow_schema()
    schema = schema.with_metadata({**schema.metadata, **about})
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in groups:
            try:
                batch = pa.RecordBatch.from_pylist(group, schema=schema)
            except (pa.ArrowException, OverflowError) as error:
                raise RunError(
                    f"expected values that fit the columns in block {group[0]['block']!r}: {error}"
                ) from error
            writer.write_batch(batch)
            count += len(group)
    return count


def _read_parquet(path: Path) -> Iterator[_Row]:
    pa = _arrow()
    import pyarrow.parquet as pq

    schema = arrow_schema()
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise RunError(f"expected the columns that `rtg export` writes in {path}: {error}") from error


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return pyarrow


def _arrow_type(name: str) -> Any:
    pa = _arrow()
    if name.startswith("list<"):
        return pa.list_(_arrow_type(name.removeprefix("list<").removesuffix(">")))
    if name == _MESSAGE:
        return pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.type_for_alias(name)
