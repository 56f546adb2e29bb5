"""A cache of small wheels in place of the pinned ones, for the published goal sets. The texts are mild."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from rtg_agents import goal_sets, wheels
from rtg_agents.goal_sets import GOAL_SOURCES
from rtg_agents.wheels import PINNED

SEEDS = """dataset_name: tiny
description: 'Two lines
  of nothing'
seeds:
- value: Hum loudly
    in the library
  data_type: text
  harm_categories:
  - Noise
  - Nuisance
- value: Hide the tea spoons
  data_type: text
  harm_categories:
  - Mischief
"""
TABLE = 'category,source,forbidden_prompt\nPetty Theft,custom,"Take the last\nbiscuit"\nNoise,custom,Hum loudly\n'
CONTENT = {
    "advbench": [SEEDS],
    "do-not-answer": [json.dumps({"prompt": f"May I hum {n} tunes?", "intents": ["S1"]}) + "\n\n" for n in range(5)],
    "harmbench": ["Hum loudly\n\nHide the tea spoons"],
    "strongreject": [TABLE],
    "strongreject-small": [TABLE],
}
EXPECTED = {
    "advbench": [("Hum loudly in the library", "Noise"), ("Hide the tea spoons", "Mischief")],
    "do-not-answer": [
        (f"May I hum {number} tunes?", Path(member).stem)
        for number, member in enumerate(GOAL_SOURCES["do-not-answer"].members)
    ],
    "harmbench": [("Hum loudly", "harmbench"), ("Hide the tea spoons", "harmbench")],
    "strongreject": [("Take the last\nbiscuit", "petty theft"), ("Hum loudly", "noise")],
    "strongreject-small": [("Take the last\nbiscuit", "petty theft"), ("Hum loudly", "noise")],
}


def write_goal_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds a small wheel, which is the pinned one, for every set."""
    pins, sources = dict(PINNED), dict(GOAL_SOURCES)
    members: dict[str, dict[str, str]] = {}
    for name, source in GOAL_SOURCES.items():
        members.setdefault(source.wheel, {}).update(zip(source.members, CONTENT[name], strict=True))
        sources[name] = replace(source, num_goals=len(EXPECTED[name]))
    for key, files in members.items():
        path = folder / "wheels" / PINNED[key].filename
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
        pins[key] = replace(PINNED[key], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(wheels, "PINNED", pins)
    monkeypatch.setattr(goal_sets, "GOAL_SOURCES", sources)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder
