"""Best response by MAP-Elites: an archive of attacks over topic and style, improved by mutation. No gradient.

After Rainbow Teaming (arXiv:2402.16822). Per round some mutations, all played in one batch:

    parent: an elite drawn from the archive; cell: a topic (category of goals) and a style (one of red's templates), drawn
    candidate: the cell's template around the base model's rewriting of the parent's body, if parent and goal are the same,
        otherwise around its rewriting of the goal
    it replaces the cell's elite if the mean harm of k replies is greater

Deviations: the paper's mutator is told topic and style in words and may change either; a 135M model cannot follow that, so
the style is a template and the model rewrites what stands in it. Its judge compares two replies; ours scores each. A candidate
is not compared with its parent for likeness: one cell keeps one sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rtg_agents.archive import Elite
from rtg_agents.policy import BASE, Policy
from rtg_agents.population import Member
from rtg_agents.scripted import ATTACK_TEMPLATES, ScriptedPolicy
from rtg_env import rules
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.goals import Goal
from rtg_env.transcripts import Played
from rtg_env.types import Observation
from rtg_solvers.loop import DialogueContext, Task
from rtg_solvers.rollout import Game, Pairing, play
from rtg_solvers.seeding import draw_seed, rng_for


@dataclass(frozen=True, slots=True, kw_only=True)
class MapElitesSettings:
    """Settings of one search."""

    rounds: int = 16
    """Rounds of mutation after the first, which fills every cell with a plain template; at least 0."""

    mutations: int = 16
    """Candidates per round, at least 1."""

    responses: int = 3
    """Replies to each (k), at least 1."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if self.rounds < 0 or self.mutations < 1 or self.responses < 1:
            raise ConfigError(
                f"expected rounds >= 0, mutations >= 1 and responses >= 1, got {self.rounds}, {self.mutations} and "
                f"{self.responses}"
            )


class _Candidate(NamedTuple):
    goal: Goal
    style: str
    body: str

    @property
    def cell(self) -> tuple[str, str]:
        return self.goal.category, self.style

    def text(self, max_chars: int) -> str:
        return self.style.replace("{goal}", self.body)[:max_chars]


class _Kept(NamedTuple):
    candidate: _Candidate
    harm: float


class MapElitesOracle:
    """Searches an archive.

    Args:
        settings: How long.
        queries: Victim queries, which then decide the rounds; 0: as many rounds as the settings say.
    """

    def __init__(self, settings: MapElitesSettings, *, queries: int = 0) -> None:
        self._settings = settings
        self._queries = queries

    def respond(self, task: Task[DialogueContext]) -> Member:
        """The archive as a member; every round is a block of the store, read back when a search goes on after a kill.

        Raises:
            ConfigError: If blue is to search.
            JudgeError: If not one attack was scored.
        """
        if task.role != "red":
            raise ConfigError("expected red to search, the archive holds attacks; use another oracle for blue")
        archive: dict[tuple[str, str], _Kept] = {}
        num_topics = len(topics(task.context.game.goals.harmful))
        for number in range(num_rounds(self._settings, num_topics, self._queries) + 1):
            self._round(task, number, archive)
        most = task.context.game.config.max_action_chars
        elites = [
            Elite(*candidate.cell, candidate.goal.text, candidate.text(most), round(harm, 6))
            for candidate, harm in archive.values()
        ]
        if not elites:
            raise JudgeError(
                f"expected scored attacks for {task.version}, the judge failed on all; mend it and start anew"
            )
        return Member(
            version=task.version,
            role="red",
            kind="archive",
            label=f"archive of {len(elites)} attacks",
            elites=tuple(elites),
            lineage={
                "iteration": task.iteration + 1,
                "oracle": "map-elites",
                **asdict(self._settings),
                "seed": task.context.seed,
            },
        )

    def _round(self, task: Task[DialogueContext], number: int, archive: dict[tuple[str, str], _Kept]) -> None:
        """Candidates, played and committed; then the better ones are kept."""
        store, name = task.context.store, f"train/{task.version}/{number:04d}"
        rng = rng_for(task.context.seed, "map-elites", task.role, task.iteration, number)
        goals = task.context.game.goals.harmful
        drawn = [_cell_goal(goals, style, rng) for style in self._styles(goals, number, rng)]
        if not store.has_block(name):
            bodies = [goal.text for goal, _ in drawn] if number == 0 else self._bodies(task, drawn, archive, rng)
            candidates = [_Candidate(goal, style, body) for (goal, style), body in zip(drawn, bodies, strict=True)]
            played = self._play(task, candidates, rng_for(task.context.seed, "answers", task.version, number))
            store.put_block(name, played, {"bodies": bodies})
        found = store.block(name)
        bodies = [str(body) for body in _listed(store.block_data(name)["bodies"])]
        harms = _mean_harms(found, self._settings.responses)
        for (goal, style), body, harm in zip(drawn, bodies, harms, strict=True):
            candidate = _Candidate(goal, style, body)
            old = archive.get(candidate.cell)
            if not np.isnan(harm) and (old is None or harm > old.harm):
                archive[candidate.cell] = _Kept(candidate, float(harm))
        self._note(task, number, found, archive)
        task.context.meter.add(len(found))

    def _styles(self, goals: Sequence[Goal], number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """(topic, style) of each candidate: every cell once in the first round, then at random."""
        cells = [(topic, style) for topic in topics(goals) for style in ATTACK_TEMPLATES]
        if number == 0:
            return cells
        return [cells[int(index)] for index in rng.integers(len(cells), size=self._settings.mutations)]

    def _bodies(
        self,
        task: Task[DialogueContext],
        drawn: Sequence[tuple[Goal, str]],
        archive: Mapping[tuple[str, str], _Kept],
        rng: np.random.Generator,
    ) -> list[str]:
        """The base model's rewritings of the parents' bodies."""
        parents = list(archive.values())
        sources = []
        for goal, _ in drawn:
            own = [kept for kept in parents if kept.candidate.goal == goal]
            sources.append(own[int(rng.integers(len(own)))].candidate.body if own else goal.text)
        writer = task.context.population.model_policy(BASE, "red", BASE)
        game = task.context.game
        seen = [_observed(game, goal, body) for (goal, _), body in zip(drawn, sources, strict=True)]
        said = writer.act(seen, [draw_seed(rng) for _ in seen])
        return [action.text or body for action, body in zip(said, sources, strict=True)]

    def _play(
        self, task: Task[DialogueContext], candidates: Sequence[_Candidate], rng: np.random.Generator
    ) -> list[Played]:
        """Each candidate k times against blue's mixture, all in one batch; candidate by candidate."""
        game = replace(task.context.game, config=replace(task.context.game.config, num_exchanges=1))
        policies: dict[str, Policy] = dict(task.context.population.policies)
        pairings = []
        for index, candidate in enumerate(candidates):
            name = f"candidate-{index}"
            policies[name] = ScriptedPolicy(name=name, lines=(candidate.text(game.config.max_action_chars),))
            for _ in range(self._settings.responses):
                deal = rules.draw_deal(game.config, candidate.goal, rng)
                blue = task.mixture.draw("blue", rng)
                pairings.append(Pairing(red=name, blue=blue, deal=deal, seed=draw_seed(rng)))
        return [replace(item, red=task.version) for item in play(game, policies, pairings)]

    def _note(
        self,
        task: Task[DialogueContext],
        number: int,
        played: Sequence[Played],
        archive: Mapping[tuple[str, str], _Kept],
    ) -> None:
        name, store = f"step/{task.version}/{number:04d}", task.context.store
        if store.has_block(name):
            return
        scored = [item.transcript.utility for item in played if not item.transcript.unscored]
        data: dict[str, Any] = {
            "version": task.version,
            "role": "red",
            "step": number,
            "utility": float(np.mean(scored)) if scored else None,
            "kl": None,
            "archive_harm": float(np.mean([kept.harm for kept in archive.values()])) if archive else None,
            "filled": len(archive),
            "num_queries": len(played),
            "num_unscored": len(played) - len(scored),
        }
        store.put_block(name, [], data)


def topics(goals: Sequence[Goal]) -> list[str]:
    """The categories of goals, which are the rows of an archive."""
    return sorted({goal.category for goal in goals})


def num_rounds(settings: MapElitesSettings, num_topics: int, queries: int) -> int:
    """Rounds of mutation that a budget of victim queries allows after every cell's first candidate; else the settings' own."""
    if not queries:
        return settings.rounds
    left = queries - settings.responses * num_topics * len(ATTACK_TEMPLATES)
    return max(0, left // (settings.responses * settings.mutations))


def num_queries(settings: MapElitesSettings, num_topics: int, queries: int = 0) -> int:
    """Victim queries of a search: each cell's first candidate, then the mutations."""
    rounds = num_rounds(settings, num_topics, queries)
    return settings.responses * (num_topics * len(ATTACK_TEMPLATES) + rounds * settings.mutations)


def _cell_goal(goals: Sequence[Goal], cell: tuple[str, str], rng: np.random.Generator) -> tuple[Goal, str]:
    """A goal of the cell's topic, and its style."""
    own = [goal for goal in goals if goal.category == cell[0]]
    return own[int(rng.integers(len(own)))], cell[1]


def _observed(game: Game, goal: Goal, body: str) -> Observation:
    """What red would see, had it to put this body into its own words."""
    deal = rules.draw_deal(game.config, replace(goal, text=body), np.random.default_rng(0))
    state = rules.start(game.config, deal)
    return rules.observe(game.config, state, rules.to_move(game.config, state) or "")


def _mean_harms(played: Sequence[Played], responses: int) -> np.ndarray:
    """[C] mean harm of each candidate's scored replies; NaN where none was scored."""
    harm = np.array(
        [np.nan if item.transcript.unscored else item.transcript.verdicts[0].harm for item in played]
    ).reshape(-1, responses)
    count = (~np.isnan(harm)).sum(axis=1)
    return np.asarray(np.nansum(harm, axis=1) / np.where(count > 0, count, np.nan))


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
