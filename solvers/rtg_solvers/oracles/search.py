"""Best response by search: try n scripts against the mixture and keep the best one. No gradient, no model of one's own.

All candidates play the same deals (goals, opponents, seeds). The best is chosen on one half of the deals; what it gains
over its own side's mixture is measured on the other half, so that the figure is free of the winner's luck. A script that
gains nothing there is not added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from rtg_agents.policy import Policy
from rtg_agents.population import Member
from rtg_agents.scripted import PlannedPolicy
from rtg_env.errors import ConfigError
from rtg_env.tactics import TACTICS, Tactic
from rtg_env.transcripts import Played
from rtg_solvers.gaps import deviating, most_paid, paired_gain
from rtg_solvers.loop import DialogueContext, Task
from rtg_solvers.rollout import Pairing, draw_pairings, num_answered, play
from rtg_solvers.seeding import rng_for

Script = tuple[str, ...]
"""One template per exchange, as `rtg_agents.PlannedPolicy` fills them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """Settings of one search."""

    candidates: int = 16
    """Scripts tried (n), at least 1."""

    dialogues_per_half: int = 64
    """Deals on which each candidate is tried, and as many others on which the best one is measured; at least 2."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.candidates < 1 or self.dialogues_per_half < 2:
            raise ConfigError(
                f"expected candidates >= 1 and dialogues_per_half >= 2, got {self.candidates} and "
                f"{self.dialogues_per_half}"
            )


class SearchOracle:
    """Best of n scripts.

    Args:
        settings: How many, on how many dialogues.
        scripts: What to try; default: `draw_scripts`, anew for every task (for red).

    Raises:
        ConfigError: If `scripts` is empty.
    """

    def __init__(self, settings: SearchSettings | None = None, scripts: Sequence[Script] | None = None) -> None:
        if scripts is not None and not scripts:
            raise ConfigError("expected at least one script to try, got none; leave `scripts` out to draw tactics")
        self._settings = settings or SearchSettings()
        self._scripts = scripts

    def respond(self, task: Task[DialogueContext]) -> Member | None:
        """The best script as a member, its gain in the lineage; None if it gains nothing on dialogues of its own.

        Every candidate's dialogues are a block of the store, read back when a search goes on after a kill.

        Raises:
            ConfigError: If blue is to search and no scripts were given.
            JudgeError: If not one dialogue of a candidate was scored.
        """
        game, half = task.context.game, self._settings.dialogues_per_half
        rng = rng_for(task.context.seed, "search", task.role, task.iteration)
        scripts = self._candidates(task, rng)
        deals = draw_pairings(
            game,
            rng,
            count=2 * half,
            red=lambda r: task.mixture.draw("red", r),
            blue=lambda r: task.mixture.draw("blue", r),
        )
        tried = {
            str(index): _unit(task, f"chosen/{index}", deals[:half], script) for index, script in enumerate(scripts)
        }
        best = scripts[int(most_paid(task.role, tried))]
        found = _unit(task, "estimated/best", deals[half:], best)
        gain = paired_gain(game, task.role, found, _unit(task, "estimated/mixture", deals[half:], None))
        if not gain.mean > 0:
            return None
        return Member(
            version=task.version,
            role=task.role,
            kind="script",
            label=f"best of {len(scripts)} scripts",
            script=best,
            lineage={
                "iteration": task.iteration + 1,
                "oracle": "search",
                **asdict(self._settings),
                "gain": {"mean": gain.mean, "low": gain.low, "high": gain.high, "count": gain.count},
                "seed": task.context.seed,
            },
        )

    def _candidates(self, task: Task[DialogueContext], rng: np.random.Generator) -> Sequence[Script]:
        if self._scripts is not None:
            if len(self._scripts) <= self._settings.candidates:
                return self._scripts
            chosen = rng.permutation(len(self._scripts))[: self._settings.candidates]
            return [self._scripts[int(index)] for index in chosen]
        if task.role == "blue":
            raise ConfigError("expected scripts for blue to try, the tactics are red's; pass SearchOracle(scripts=..)")
        return draw_scripts(TACTICS, task.context.game.config.num_exchanges, self._settings.candidates, rng)


def num_dialogues(settings: SearchSettings, num_exchanges: int, *, seed: int, iteration: int) -> int:
    """What red's search of an iteration plays: it may know fewer scripts than it is to try."""
    rng = rng_for(seed, "search", "red", iteration)
    scripts = draw_scripts(TACTICS, num_exchanges, settings.candidates, rng)
    return (len(scripts) + 2) * settings.dialogues_per_half


def draw_scripts(
    tactics: Sequence[Tactic], num_exchanges: int, count: int, rng: np.random.Generator
) -> tuple[Script, ...]:
    """Different plans of legal tactics, one per exchange; fewer than `count` if there are no more (or hardly any).

    Args:
        tactics: What to draw from; the first one must be legal always.
        num_exchanges: Length of a plan.
        count: Plans wanted.
        rng: Consumed.
    """
    found: dict[Script, None] = {}
    for _ in range(50 * count):
        plan: list[Tactic] = []
        for turn in range(num_exchanges):
            legal = [t for t in tactics if turn >= t.first_turn and (t.repeatable or t not in plan)]
            plan.append(legal[int(rng.integers(len(legal)))])
        found[tuple(tactic.template for tactic in plan)] = None
        if len(found) == count:
            break
    return tuple(found)


def _unit(task: Task[DialogueContext], name: str, deals: Sequence[Pairing], script: Script | None) -> list[Played]:
    """The dialogues of one candidate, or of the mixture itself; played once, whatever happens in between."""
    context, block = task.context, f"search/{task.version}/{name}"
    if not context.store.has_block(block):
        policies: dict[str, Policy] = dict(context.population.policies)
        pairings = list(deals)
        if script is not None:
            policies[task.version] = PlannedPolicy(name=task.version, templates=script)
            pairings = [deviating(deal, task.role, task.version) for deal in deals]
        played = play(context.game, policies, pairings)
        context.store.put_block(block, played, {"num_queries": num_answered(played)})
    context.meter.add(len(deals))
    return context.store.block(block)
