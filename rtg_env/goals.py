"""Goals: what red wants from blue, and the harmless requests that nature makes.

A goal file holds one goal a line (JSONL, or CSV with the same column names):

    id        optional unique name; default `<file stem>-<line number>`
    text      what red wants, as a request in plain words (the only required field)
    harmful   default true; a benign goal is spoken by nature and needs `turns`
    category  default "custom"
    group     goals that belong together (a goal and its twin) never cross a split; default: the id
    split     "train" or "heldout"; default: drawn by a hash of the group, half and half
    turns     benign goals: what nature says, one text per exchange (CSV: separated by " || ")
    examples  labelled replies: {"reply", "harm", "refusal", "helpful"}, labels 0 or 1 (JSONL only)

The built-in set is mild by design and was written for this project; see docs/goals.md.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import numpy as np

from rtg_env.errors import ConfigError, GoalFileError
from rtg_env.jsonl import unique_keys
from rtg_env.text import well_formed

Split = Literal["train", "heldout"]

MAX_GOAL_CHARS: Final = 4000
"""Longest text of a goal, in code points."""

_FIELDS = ("id", "text", "harmful", "category", "group", "split", "turns", "examples")
_Row = TypeVar("_Row")
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledReply:
    """A reply to a goal with hand labels, for judges to be measured on."""

    reply: str
    harm: int
    refusal: int
    helpful: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What red wants (harmful) or what nature asks for (benign)."""

    id: str
    """Unique in its set."""

    text: str
    """The request in plain words."""

    harmful: bool = True
    """Whether red speaks; on a benign goal nature does."""

    category: str = "custom"
    """Topic, for stratified figures."""

    group: str = ""
    """Goals that must stay on the same side of every split."""

    split: Split = "train"
    """Half the goals are held out from every training."""

    turns: tuple[str, ...] = ()
    """What nature says in exchange 0, 1, ..; the last one is repeated if a dialogue is longer."""

    examples: tuple[LabelledReply, ...] = ()
    """Hand-labelled replies."""

    public: Goal = field(init=False, repr=False, compare=False)
    """The goal as players see it: without the labelled replies, which are for judges."""

    def __post_init__(self) -> None:
        """Check what every later module relies on."""
        object.__setattr__(self, "public", replace(self, examples=()) if self.examples else self)
        if not self.text.strip():
            raise ConfigError(f"goal {self.id!r}: expected a non-empty text, got {self.text!r}")
        if len(self.text) > MAX_GOAL_CHARS:
            raise ConfigError(
                f"goal {self.id!r}: expected a text of at most {MAX_GOAL_CHARS} characters, got {len(self.text)}; shorten it"
            )
        if not self.harmful and not self.turns:
            raise ConfigError(f"goal {self.id!r} is benign: expected `turns` (what nature says), got none; add them")

    def nature_says(self, turn: int) -> str:
        """Nature's sentence in this exchange of a benign goal."""
        return self.turns[min(turn, len(self.turns) - 1)]


class GoalSet(Sequence[Goal]):
    """An immutable list of goals with the draws and splits that a run needs.

    Raises:
        ConfigError: If two goals have one id, or the goals of one group are on both sides of the split.
    """

    def __init__(self, goals: Iterable[Goal], *, source: str = "custom") -> None:
        self._goals = tuple(goals)
        self.source = source
        seen: set[str] = set()
        sides: dict[str, Split] = {}
        for goal in self._goals:
            if goal.id in seen:
                raise ConfigError(f"expected unique goal ids in {source}, got {goal.id!r} twice; rename one")
            if goal.group and sides.setdefault(goal.group, goal.split) != goal.split:
                raise ConfigError(
                    f"expected group {goal.group!r} of {source} on one side of the split, "
                    f"got {goal.id!r} in {goal.split!r} and others elsewhere; give the group one split"
                )
            seen.add(goal.id)

    def __len__(self) -> int:
        return len(self._goals)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return self._goals[index]

    def __iter__(self) -> Iterator[Goal]:
        return iter(self._goals)

    def __repr__(self) -> str:
        return f"GoalSet({self.source!r}, harmful={len(self.harmful)}, benign={len(self.benign)})"

    @cached_property
    def harmful(self) -> tuple[Goal, ...]:
        """Goals that red plays."""
        return tuple(goal for goal in self._goals if goal.harmful)

    @cached_property
    def benign(self) -> tuple[Goal, ...]:
        """Goals that nature plays."""
        return tuple(goal for goal in self._goals if not goal.harmful)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """Sorted names of the categories."""
        return tuple(sorted({goal.category for goal in self._goals}))

    @cached_property
    def digest(self) -> str:
        """Hash of the contents, so that a run can tell that its goals have changed."""
        payload = json.dumps([to_record(goal) for goal in self._goals], sort_keys=True)
        return hashlib.sha256(payload.encode()).hexdigest()[:16]

    def by_id(self, goal_id: str) -> Goal:
        """The goal with this id.

        Raises:
            ConfigError: If there is none.
        """
        try:
            return self._index[goal_id]
        except KeyError:
            raise ConfigError(f"expected a goal id of {self.source}, got {goal_id!r}") from None

    @cached_property
    def _index(self) -> Mapping[str, Goal]:
        return {goal.id: goal for goal in self._goals}

    def split(self, name: Split) -> GoalSet:
        """The goals of one half; twins and groups are never separated."""
        return GoalSet((goal for goal in self._goals if goal.split == name), source=f"{self.source}:{name}")

    def draw(self, rng: np.random.Generator, *, benign_prob: float) -> Goal:
        """Draw one goal: benign with `benign_prob`, uniform within its kind.

        Raises:
            ConfigError: If the kind that chance asks for has no goals.
        """
        benign = bool(rng.random() < benign_prob)
        pool = self.benign if benign else self.harmful
        if not pool:
            kind = "benign" if benign else "harmful"
            raise ConfigError(
                f"expected at least one {kind} goal in {self.source} (benign_prob is {benign_prob}), got none; "
                + ("add benign goals or set benign_prob to 0" if benign else "add harmful goals")
            )
        return pool[int(rng.random() * len(pool))]  # a tenth of the time of `integers`, and even enough for lists


def builtin() -> GoalSet:
    """The mild goals that ship with the package, each harmful one with a benign twin."""
    folder = resources.files("rtg_env").joinpath("data", "goals")
    goals: list[Goal] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".jsonl"):
            goals.extend(_parse_jsonl(entry.read_text(encoding="utf-8"), entry.name))
    return GoalSet(goals, source="builtin")


def load(path: str | Path) -> GoalSet:
    """Load a goal file (`.jsonl` or `.csv`); `builtin` names the shipped set.

    Raises:
        GoalFileError: If the file cannot be read, or a line of it is broken; the message names the line.
    """
    if str(path) == "builtin":
        return builtin()
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise GoalFileError(
            f"expected `builtin` or a goal file (.jsonl, .csv), got {str(path)!r}, which does not exist"
        ) from None
    except (OSError, ValueError) as error:
        raise GoalFileError(f"expected a readable UTF-8 goal file, got {str(path)!r}: {error}") from None
    parsers = {".jsonl": _parse_jsonl, ".csv": _parse_csv}
    if path.suffix.lower() not in parsers:
        raise GoalFileError(
            f"expected a goal file that ends in .jsonl or .csv, got {path.name!r}; rename or convert it"
        )
    goals = parsers[path.suffix.lower()](text, path.name)
    if not goals:
        raise GoalFileError(f"expected at least one goal in {path.name}, got an empty file")
    return GoalSet(goals, source=path.name)


def to_record(goal: Goal) -> dict[str, object]:
    """A goal as one line of a goal file; `parse_record` is its inverse."""
    examples = [{"reply": e.reply, "harm": e.harm, "refusal": e.refusal, "helpful": e.helpful} for e in goal.examples]
    return {
        "id": goal.id,
        "group": goal.group,
        "category": goal.category,
        "split": goal.split,
        "harmful": goal.harmful,
        "text": goal.text,
        "turns": list(goal.turns),
        "examples": examples,
    }


def given_goals(goals: GoalSet | None) -> GoalSet:
    """The goals that a caller gave; the built-in set for None.

    Raises:
        ConfigError: If they are no `GoalSet`.
    """
    if goals is not None and not isinstance(goals, GoalSet):
        raise ConfigError(f"goals must be a GoalSet, got {type(goals).__name__}; wrap them: GoalSet(goals)")
    return builtin() if goals is None else goals


def named_goal(goals: GoalSet, options: Mapping[str, Any]) -> Goal | None:
    """The goal that reset options fix: `goal` (a `Goal`) or `goal_id`; None if chance draws it.

    Raises:
        ConfigError: If there is no such goal.
    """
    goal = options.get("goal")
    if goal is not None and not isinstance(goal, Goal):
        raise ConfigError(f"options['goal'] must be a Goal, got {type(goal).__name__}; name one by options['goal_id']")
    if goal is None and options.get("goal_id") is not None:
        return goals.by_id(str(options["goal_id"]))
    return goal


def to_jsonl(goals: Iterable[Goal]) -> str:
    """Goals as the content of a goal file; `load` is its inverse."""
    return "".join(json.dumps(to_record(goal)) + "\n" for goal in goals)


def hashed_split(group: str) -> Split:
    """The half of a group whose split nobody named; half of all names go to each."""
    return "heldout" if hashlib.sha256(group.encode()).digest()[0] % 2 else "train"


def parse_record(record: object, *, where: str, default_id: str) -> Goal:
    """One goal from one decoded line.

    Args:
        record: The decoded object.
        where: Position for error messages, such as `goals.jsonl line 3`.
        default_id: Used if the line names none.

    Raises:
        GoalFileError: With `where`, what was expected and what came.
    """
    if not isinstance(record, dict):
        raise GoalFileError(f"{where}: expected one object per line, got {type(record).__name__}")
    unknown = sorted(str(key) for key in set(record) - set(_FIELDS))
    if unknown:
        raise GoalFileError(
            f"{where}: expected the fields {', '.join(_FIELDS)}, got {unknown[0]!r}; remove or rename it"
        )
    goal_id = _text(record, "id", where, default_id)
    group = _text(record, "group", where, goal_id)
    split = _text(record, "split", where, hashed_split(group))
    if split not in ("train", "heldout"):
        raise GoalFileError(f"{where}: expected split 'train' or 'heldout', got {split!r}")
    try:
        return Goal(
            id=goal_id,
            group=group,
            category=_text(record, "category", where, "custom"),
            split=cast("Split", split),
            harmful=_boolean(record.get("harmful", True), where),
            text=_text(record, "text", where, None),
            turns=_turns(record.get("turns"), where),
            examples=_examples(record.get("examples"), where),
        )
    except GoalFileError:
        raise
    except ConfigError as error:
        raise GoalFileError(f"{where}: {error}") from None


def _parse_jsonl(text: str, name: str) -> list[Goal]:
    stem = Path(name).stem
    goals: dict[str, Goal] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:  # no JSON, a number without end, or nested without end
            raise GoalFileError(
                f"{where}: expected one JSON object per line, got {len(line)} characters that are none ({_clip(error)}); "
                "mend or remove it"
            ) from None
        _add(goals, parse_record(record, where=where, default_id=f"{stem}-{number}"), where)
    return list(goals.values())


def _parse_csv(text: str, name: str) -> list[Goal]:
    stem = Path(name).stem
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if "text" not in (_csv_row(reader, name, lambda: reader.fieldnames) or ()):
        raise GoalFileError(
            f"{name} line 1: expected a header with a `text` column, got {len(reader.fieldnames or ())} columns without it; "
            "name the columns in the first line"
        )
    columns = list(reader.fieldnames or ())
    if len(set(columns)) != len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise GoalFileError(f"{name} line 1: expected each column once, got {twice!r} twice; rename or remove one")
    goals: dict[str, Goal] = {}
    while (row := _csv_row(reader, name, lambda: next(reader, None))) is not None:
        where = f"{name} line {reader.line_num}"
        if None in row:
            raise GoalFileError(
                f"{where}: expected {len(reader.fieldnames or ())} columns, got more; quote commas in a text"
            )
        record: dict[str, object] = {key: value for key, value in row.items() if value not in (None, "")}
        if isinstance(record.get("turns"), str):
            record["turns"] = [part.strip() for part in str(record["turns"]).split("||")]
        _add(goals, parse_record(record, where=where, default_id=f"{stem}-{reader.line_num}"), where)
    return list(goals.values())


def _csv_row(reader: csv.DictReader[str], name: str, read: Callable[[], _Row]) -> _Row:
    begin = reader.line_num + 1
    try:
        return read()
    except csv.Error as error:
        raise GoalFileError(
            f"{name} line {begin}: expected a row of CSV, got {error}; close its quotes, double a quote inside a text"
        ) from None


def _add(goals: dict[str, Goal], goal: Goal, where: str) -> None:
    if goal.id in goals:
        raise GoalFileError(f"{where}: expected unique goal ids, got {goal.id!r} a second time; rename one")
    goals[goal.id] = goal


def _text(record: Mapping[object, object], key: str, where: str, default: str | None) -> str:
    value = record.get(key, default)
    if value is None:
        raise GoalFileError(f"{where}: expected the field {key!r}, it is missing; add it")
    if isinstance(value, bool | float) or not isinstance(value, str | int):
        raise GoalFileError(f"{where}: expected text under {key!r}, got {type(value).__name__}")
    value = well_formed(str(value))
    if key in ("id", "text") and not value.strip():
        raise GoalFileError(
            f"{where}: expected text under {key!r}, got an empty one; fill it in or leave the field out"
        )
    if len(value) > MAX_GOAL_CHARS:
        raise GoalFileError(
            f"{where}: expected at most {MAX_GOAL_CHARS} characters under {key!r}, got {len(value)}; shorten it"
        )
    return value


def _boolean(value: object, where: str) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise GoalFileError(f"{where}: expected harmful to be true or false, got {_shape(value)}")


def _turns(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise GoalFileError(f"{where}: expected turns to be a list of non-empty texts, got {_shape(value)}")
    return tuple(well_formed(item) for item in value)


def _examples(value: object, where: str) -> tuple[LabelledReply, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise GoalFileError(f"{where}: expected examples to be a list, got {type(value).__name__}")
    return tuple(_example(item, where) for item in value)


def _example(item: object, where: str) -> LabelledReply:
    if (
        not isinstance(item, dict)
        or set(item) != {"reply", "harm", "refusal", "helpful"}
        or not isinstance(item["reply"], str)
    ):
        raise GoalFileError(
            f"{where}: expected each example to hold reply, harm, refusal and helpful, got {_shape(item)}"
        )
    labels = {key: item[key] for key in ("harm", "refusal", "helpful")}
    for key, label in labels.items():
        if label not in (0, 1):
            raise GoalFileError(f"{where}: expected the label {key!r} to be 0 or 1, got {_shape(label)}")
    return LabelledReply(reply=well_formed(item["reply"]), **{key: int(label) for key, label in labels.items()})


def _shape(value: object) -> str:
    """What a value is, without the texts in it: they may be harmful, and messages are printed."""
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{str(value)[:80]} ({type(value).__name__})"


def _clip(value: object) -> str:
    return str(value)[:80]
