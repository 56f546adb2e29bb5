"""Write agents/rtg_agents/data/goal_groups.json: which goals of the published sets are near-duplicates, by id alone.

`python scripts/group_goal_sets.py` fetches the pinned wheels, groups the goals of all sets together, and chooses the
first salt for which each set has at least 45 % of its goals in each half. The same wheels give the same file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rtg_agents.goal_sets import GOAL_SOURCES, load_goal_set
from rtg_agents.wheels import PINNED
from rtg_env.goal_groups import NEAR_DUPLICATE, group_near_duplicates
from rtg_env.goals import Goal, hashed_split

OUT = Path(__file__).resolve().parents[1] / "agents" / "rtg_agents" / "data" / "goal_groups.json"
SMALLEST_HALF = 0.45


def table() -> str:
    """The content of the file."""
    sets = [[Goal(id=goal.id, text=goal.text) for goal in load_goal_set(name)] for name in GOAL_SOURCES]
    grouped = group_near_duplicates([goal for goals in sets for goal in goals])
    members: defaultdict[str, list[str]] = defaultdict(list)
    for goal in grouped:
        members[goal.group].append(goal.id)
    group_of = {goal.id: goal.group for goal in grouped}
    sizes = [[group_of[goal.id] for goal in goals] for goals in sets]
    salt = next(f"{number}/" for number in range(1000) if all(_is_even(groups, f"{number}/") for groups in sizes))
    wheels = sorted({PINNED[source.wheel].sha256 for source in GOAL_SOURCES.values()})
    lines = ",\n".join(f"  {json.dumps(sorted(ids))}" for _, ids in sorted(members.items()) if len(ids) > 1)
    head = f' "wheels": {json.dumps(wheels)},\n "threshold": {NEAR_DUPLICATE},\n "salt": {json.dumps(salt)},'
    return f'{{\n{head}\n "groups": [\n{lines}\n ]\n}}\n'


def _is_even(groups: Sequence[str], salt: str) -> bool:
    heldout = sum(hashed_split(salt + group) == "heldout" for group in groups) / len(groups)
    return SMALLEST_HALF <= heldout <= 1 - SMALLEST_HALF


if __name__ == "__main__":
    OUT.write_text(table(), encoding="utf-8")
