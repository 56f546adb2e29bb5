"""Puts the environments into PettingZoo's registry (1.27 and later; older versions have none)."""

from __future__ import annotations

from typing import Final

import pettingzoo

_ID: Final = "redteam/Dialogue-v0"


def register_environments() -> None:
    """Make `pettingzoo.make("aec", "redteam/Dialogue")` and its parallel twin known; safe to call twice."""
    if not hasattr(pettingzoo, "register"):
        return
    if not _is_known():
        pettingzoo.register("aec", _ID, entry_point="rtg_env.env:env")
        pettingzoo.register("parallel", _ID, entry_point="rtg_env.env:parallel_env")


def _is_known() -> bool:
    try:
        pettingzoo.spec("aec", _ID)
    except Exception:  # noqa: BLE001 - "not registered" has no error class of its own across versions
        return False
    return True
