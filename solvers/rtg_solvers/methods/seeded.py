"""What the methods whose goals are seed prompts have in common: SEAS and MART."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rtg_agents.wheels import file_sha256
from rtg_env import goals as goals_module
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal
from rtg_env.rules import GameConfig
from rtg_env.tactics import Tactic
from rtg_solvers.methods.common import RunConfig
from rtg_solvers.oracles.rl import RLSettings


class Sources(NamedTuple):
    """What a run reads besides its goals: `builtin`, or files."""

    seeds: str
    """Seed prompts."""

    instructions: str
    """Requests with answers."""

    general: str = "builtin"
    """Preference pairs of everyday requests."""

    def digests(self) -> dict[str, str]:
        """What stands in those that are files, as hashes: another text under the same name makes another run.

        Raises:
            ConfigError: If one cannot be read.
        """
        found = {}
        for name, source in self._asdict().items():
            if source != "builtin":
                try:
                    found[name] = file_sha256(Path(source))
                except OSError as error:
                    raise ConfigError(f"expected a file of {name}, {source!r} cannot be read: {error}") from None
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededConfig(RunConfig):
    """A run in which an attack is one sentence after a seed, and one reply."""

    heldout_seeds: int = 32
    """Seeds of the held-out half, for checks and the evaluation; at least 2."""

    game: GameConfig = field(default_factory=lambda: GameConfig(num_exchanges=1, benign_prob=0.0))
    """Rules and pay: one exchange, no benign goals (over-refusal is measured in the evaluation)."""

    dialogues_per_cell: int = 32
    """Dialogues per payoff cell, at least 2; on average, if `adaptive`."""

    dialogues_per_gap: int = 32
    """Fresh deals per gap, at least 2."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range, and rules under which an attack is not one sentence and one reply."""
        RunConfig.__post_init__(self)  # zero-argument super() fails in a dataclass with slots
        if self.heldout_seeds < 2:
            raise ConfigError(f"expected heldout_seeds >= 2, got {self.heldout_seeds}")
        game = self.game
        if game.num_exchanges != 1 or game.benign_prob != 0.0 or game.num_red != 1:
            raise ConfigError(
                "expected game.num_exchanges 1, game.num_red 1 and game.benign_prob 0: an attack stage is single attacks on "
                f"seeds; got {game.num_exchanges}, {game.num_red} and {game.benign_prob}"
            )
        if game.red_tokens or game.blue_tokens:
            raise ConfigError("expected no limit on a side's tokens (game.red_tokens, game.blue_tokens 0)")

    def heldout_requests(self) -> tuple[Goal, ...]:
        """The ordinary requests that `rtg evaluate` asks every target: of `goals`, which names nothing else here.

        Raises:
            GoalFileError: If they cannot be read.
            ConfigError: If there are none.
        """
        found = goals_module.load(self.goals).split("heldout").benign
        if not found:
            raise ConfigError(
                f"expected benign goals in the held-out half of {self.goals!r}, which rtg evaluate asks every target, got none; "
                "add some, or leave goals out"
            )
        return found

    @property
    def fills(self) -> Sequence[Tactic]:
        """No member fills templates with a seed."""
        return ()

    @property
    def rl(self) -> RLSettings:
        """Of fresh best responses, which this method does not have: the usual ones."""
        return RLSettings()
