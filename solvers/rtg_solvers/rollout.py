"""Plays batches of dialogues between any policies: the only training-side caller of the engine.

All dialogues advance together; at each turn the requests of every policy that shares a backend go out in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from rtg_agents.policy import BackendPolicy, RememberingBackend
from rtg_env import rules
from rtg_env.engine import DialogueBatch, Turn
from rtg_env.errors import JudgeError, PolicyError
from rtg_env.goals import GoalSet
from rtg_env.judges.base import Judge
from rtg_env.policies import Asked, Policy, answers, within_limit
from rtg_env.rules import Deal, GameConfig
from rtg_env.transcripts import Played
from rtg_env.types import Action
from rtg_solvers.seeding import draw_seed

_JOINT: Final = "+"
"""Between the versions of a joint one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """A dialogue that is to be played."""

    red: str
    """Version of red's policy; it speaks for every red member. A joint version (`joint_version`) names one per seat."""

    blue: str
    """Version of blue's policy."""

    deal: Deal
    """What chance drew."""

    seed: int
    """Seed of the dialogue."""


def joint_version(versions: Sequence[str]) -> str:
    """One name for a whole red team: the version of `red_0`, of `red_1`, .., such as `red_01@v1+red_03@v1`.

    A team is one meta-player: its members are drawn together, as rows of one payoff tensor.

    Args:
        versions: One per seat, in the order of `GameConfig.red_agents`.

    Raises:
        PolicyError: If there is none, or a version is a joint one itself.
    """
    if not versions or any(_JOINT in version for version in versions):
        raise PolicyError(f"expected versions without {_JOINT!r}, one per seat of the red team, got {list(versions)}")
    return _JOINT.join(versions)


def seats(version: str, num_red: int) -> tuple[str, ...]:
    """Version of each seat of the red team: a plain version takes them all, a joint one must name each.

    Raises:
        PolicyError: If a joint version names another number of seats.
    """
    named = tuple(version.split(_JOINT))
    if len(named) == 1:
        return named * num_red
    if len(named) != num_red:
        raise PolicyError(f"expected a joint version of {num_red} red members, got {len(named)} in {version!r}")
    return named


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """The game that is played, all in one hand."""

    config: GameConfig
    """Rules and pay."""

    goals: GoalSet
    """What chance draws from."""

    judge: Judge
    """Pays."""


def draw_pairings(
    game: Game,
    rng: np.random.Generator,
    *,
    count: int,
    red: Callable[[np.random.Generator], str],
    blue: Callable[[np.random.Generator], str],
    group_size: int = 1,
    harmful_only: bool = False,
) -> list[Pairing]:
    """Let chance draw goals, orders, opponents and seeds.

    Args:
        game: Rules and goals.
        rng: Consumed.
        count: Number of dialogues; a multiple of `group_size`.
        red: Draws red's version.
        blue: Draws blue's version.
        group_size: Dialogues in a row that share the whole draw but the seed (leave-one-out compares those).
        harmful_only: Leave out benign goals, on which red never speaks.
    """
    pairings = []
    for _ in range(count // group_size):
        goal = game.goals.draw(rng, benign_prob=0.0 if harmful_only else game.config.benign_prob)
        deal = rules.draw_deal(game.config, goal, rng)
        versions = red(rng), blue(rng)
        for _ in range(group_size):
            pairings.append(Pairing(red=versions[0], blue=versions[1], deal=deal, seed=draw_seed(rng)))
    return pairings


def play(game: Game, policies: Mapping[str, Policy], pairings: Sequence[Pairing]) -> list[Played]:
    """Play dialogues to their end and have them judged.

    Args:
        game: Rules and judge.
        policies: Policy by version.
        pairings: Who plays whom, on what, with which seed.

    Raises:
        PolicyError: If a version is unknown or names another number of seats, or a policy breaks its contract.
        JudgeError: If the judge failed in every single dialogue (of at least four).
    """
    deals = [dealt(game.config, pairing) for pairing in pairings]
    for version in {name for deal in deals for name in deal.policies}:
        if version not in policies:
            raise PolicyError(f"expected a policy for {version}, known are {', '.join(sorted(policies))}")
    batch = DialogueBatch(game.config, deals, game.judge)
    with fresh_memory(policies):
        while turns := batch.pending():
            batch.submit(speak(game.config, policies, turns))
    played = [
        Played(red=pairing.red, blue=pairing.blue, seed=pairing.seed, transcript=transcript)
        for pairing, transcript in zip(pairings, batch.transcripts(), strict=True)
    ]
    _check_judge(game.judge, played)
    return played


@contextmanager
def fresh_memory(policies: Mapping[str, Policy]) -> Iterator[None]:
    """Let backends remember what they read within these dialogues only.

    What they would know from others changes numbers in their last digits, and a run that goes on after a kill knows
    nothing; and training wants the memory.
    """
    backends = {id(p.backend): p.backend for p in policies.values() if isinstance(p, BackendPolicy)}
    remembering = [backend for backend in backends.values() if isinstance(backend, RememberingBackend)]
    for backend in remembering:
        backend.forget()
    try:
        yield
    finally:
        for backend in remembering:
            backend.forget()


def utilities(played: Sequence[Played]) -> np.ndarray:
    """[N] u_red of each dialogue, NaN where it is unscored."""
    return np.array([item.transcript.utility for item in played], dtype=float)


def num_answered(played: Sequence[Played]) -> int:
    """What blue was asked for in dialogues: an answer in each exchange."""
    return sum(len(item.transcript.exchanges) for item in played)


def dealt(config: GameConfig, pairing: Pairing) -> Deal:
    """What chance draws for a pairing, with who plays and the seed."""
    return pairing.deal._replace(policies=(*seats(pairing.red, config.num_red), pairing.blue), seed=pairing.seed)


def speak(config: GameConfig, policies: Mapping[str, Policy], turns: Sequence[Turn]) -> dict[int, Action]:
    """One sentence for each turn: one call per policy, and one per backend whatever the number of policies on it."""
    by_version: dict[str, list[Turn]] = {}
    for turn in turns:
        by_version.setdefault(turn.policy, []).append(turn)
    asked = [
        Asked(policies[version], [turn.observation for turn in members], [turn.seed for turn in members])
        for version, members in by_version.items()
    ]
    return {
        turn.dialogue: within_limit(action, config.max_action_chars)
        for members, said in zip(by_version.values(), answers(asked), strict=True)
        for turn, action in zip(members, said, strict=True)
    }


def _check_judge(judge: Judge, played: Sequence[Played]) -> None:
    failed = [item.transcript for item in played if item.transcript.unscored]
    if len(played) >= 4 and len(failed) == len(played):
        reason = next(verdict.raw.get("error", "") for verdict in failed[0].verdicts if not verdict.valid)
        raise JudgeError(
            f"expected verdicts from judge {judge.judge_id}, it failed in all {len(played)} dialogues ({reason}); "
            "mend the judge and run the same command again, nothing of this block was counted"
        )
