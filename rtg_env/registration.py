"""Puts the environments into PettingZoo's registry (1.27 and later; older versions have none)."""

from __future__ import annotations

import pettingzoo


def register_environments() -> None:
    """Make `pettingzoo.make("aec", "redteam/Dialogue")` and its parallel twin known; safe to call twice."""
    if not hasattr(pettingzoo, "register"):
        return
    for kind, entry_point in (("aec", "rtg_env.env:env"), ("parallel", "rtg_env.env:parallel_env")):
        try:
            pettingzoo.spec(kind, "redteam/Dialogue-v0")
        except Exception:  # noqa: BLE001 - "not registered yet" has no error class of its own across versions
            pettingzoo.register(kind, "redteam/Dialogue-v0", entry_point=entry_point)
