"""Puts the environments into the registries of PettingZoo (1.27 and later; older versions have none) and Gymnasium."""

from __future__ import annotations

from typing import Final

import gymnasium
import pettingzoo

_DIALOGUE: Final = "redteam/Dialogue-v0"
_VIEWS: Final = {
    "RedTeam/Attack-v0": ("rtg_env.views:attack", "rtg_env.vector:attack_vector"),
    "RedTeam/Defend-v0": ("rtg_env.views:defend", "rtg_env.vector:defend_vector"),
    "RedTeam/Tactics-v0": ("rtg_env.tactics:tactics", "rtg_env.tactics:tactics_vector"),
    "RedTeam/Tokens-v0": ("rtg_env.tokens:tokens", "rtg_env.tokens:tokens_vector"),
}


def register_environments() -> None:
    """Make `pettingzoo.make("aec", "redteam/Dialogue")` and `gymnasium.make("RedTeam/Attack-v0")` and their like known.

    Safe to call twice.
    """
    for name, (single, many) in _VIEWS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=single, vector_entry_point=many)
    if hasattr(pettingzoo, "register") and not _is_known():
        pettingzoo.register("aec", _DIALOGUE, entry_point="rtg_env.env:env")
        pettingzoo.register("parallel", _DIALOGUE, entry_point="rtg_env.env:parallel_env")


def _is_known() -> bool:
    try:
        pettingzoo.spec("aec", _DIALOGUE)
    except Exception:  # noqa: BLE001 - "not registered" has no error class of its own across versions
        return False
    return True
