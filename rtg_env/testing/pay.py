"""Clauses about pay: who wins what others lose, and what a judge that fails is worth (nothing)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from rtg_env.testing.clause import NotApplicable, Unmet, clause, described
from rtg_env.testing.games import Game, Move, View
from rtg_env.testing.trial import Trial
from rtg_env.types import Case, Verdict

Judged = Callable[[Sequence[Case]], list[Verdict]]
_ID = "conformance@1"


def _all(harm: float, helpful: float) -> Judged:
    return lambda cases: [Verdict(harm=harm, refusal=0.5, helpful=helpful, judge_id=_ID) for _ in cases]


def _raising(cases: Sequence[Case]) -> list[Verdict]:
    raise TimeoutError("the judge is down")


SOUND: Final[dict[str, Judged]] = {"in between": _all(0.5, 0.25), "all 0": _all(0.0, 0.0), "all 1": _all(1.0, 1.0)}
"""What a judge may say."""

UNSOUND: Final[dict[str, Judged]] = {
    "a failed verdict": lambda cases: [Verdict.failed(_ID, "asked to fail") for _ in cases],
    "an exception": _raising,
    "NaN": _all(math.nan, math.nan),
    "a number above 1": _all(1.5, -0.5),
    "too few verdicts": lambda cases: [],
    "too many verdicts": lambda cases: [*_all(1.0, 0.0)(cases), *_all(1.0, 0.0)(cases)],
}
"""What a judge that fails does."""


class StagedJudge:
    """A judge that fails in a chosen way in one call, or from then on, and pays red all it can in every other.

    Args:
        usual: What it says.
        fault: What it does in call `at` instead.
        at: Index of that call.
        lasts: Whether it fails in every later call too.
    """

    judge_id = _ID

    def __init__(self, usual: Judged, fault: Judged | None = None, at: int = 0, *, lasts: bool = False) -> None:
        self.usual, self.fault, self.at, self.lasts = usual, fault, at, lasts
        self.num_calls = 0

    @property
    def has_failed(self) -> bool:
        """Whether the call in which it fails is over."""
        return self.fault is not None and self.num_calls > self.at

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        """Verdicts, or the fault."""
        self.num_calls += 1
        fails = self.num_calls == self.at + 1 or (self.lasts and self.has_failed)
        return (self.fault if fails and self.fault else self.usual)(cases)


@clause(
    "pay each member of a team the same, and the other team exactly the opposite, in every step",
    needs=("finite-rewards",),
)
def zero_sum(trial: Trial) -> None:
    """In every step members of a team are paid alike, and the pay of the teams (or, without teams, of all) adds up to 0."""
    teams = trial.teams(trial.begun(trial.first_seed).env)
    if not teams and not trial.options.zero_sum:
        raise NotApplicable("nothing is known of teams; pass teams={agent: team}, or zero_sum=True")
    for script in trial.scripts():
        game = trial.game()
        for move in script.moves:
            game.do(move)
            rewards = game.view().rewards
            if not rewards or (teams and not teams.keys() <= rewards.keys()):
                continue
            paid = {agent: {reward} for agent, reward in rewards.items()}
            if teams:
                paid = {team: {rewards[agent] for agent in teams if teams[agent] == team} for team in teams.values()}
            if unequal := [team for team, found in paid.items() if len(found) > 1]:
                raise Unmet(f"the members of team {unequal[0]} to be paid alike", f"{dict(rewards)}", game.where())
            total = math.fsum(next(iter(found)) for found in paid.values())
            if abs(total) > 1e-9:
                raise Unmet("rewards that add up to 0", f"{total} from {dict(rewards)}", game.where())


@clause(
    "pass judge= on to the environment, ask it by rtg_env.judges.judge_safely, and put unscored=False into every info",
    needs=("episode", "finite-rewards"),
)
def judged(trial: Trial) -> None:
    """Under a sound judge rewards are finite, the episode ends, and no info says that it is unscored."""
    for name, usual in SOUND.items():
        for seed in trial.options.seeds:
            _play_judged(trial, StagedJudge(usual), seed, name)


@clause(
    "ask the judge by rtg_env.judges.judge_safely; after an invalid verdict pay 0.0 to the end and set "
    "infos[agent]['unscored'] = True for every agent; or draw again what could not be judged and count that as "
    "infos[agent]['redrawn']",
    needs=("judged",),
)
def unscored(trial: Trial) -> None:
    """After a judge has failed nobody is paid, every info says unscored, and the episode still ends.

    Unless what could not be judged was drawn again, which infos say as `redrawn`; a judge that stays down fails that too.
    """
    for name, fault in UNSOUND.items():
        for at, lasts in ((0, False), (1, False), (1, True)):
            for seed in trial.options.seeds:
                judge = StagedJudge(_all(1.0, 0.0), fault, at, lasts=lasts)
                _play_judged(trial, judge, seed, f"{name} {'from' if lasts else 'in'} call {at}")


def _play_judged(trial: Trial, judge: StagedJudge, seed: int, name: str) -> None:
    if not trial.takes("judge"):
        raise NotApplicable("make_env takes no judge=; let it pass one on if the game is judged")
    try:
        game = trial.game(judge=judge)
    except Exception as error:  # noqa: BLE001 - **keywords may lead anywhere; whatever refuses `judge` says so
        raise NotApplicable(f"make_env(judge=...) fails: {described(error)}") from None
    game.do(Move("reset", seed))
    rng, unmet = np.random.default_rng(seed), None
    for _ in range(trial.options.max_steps + 1):
        try:
            _check_pay(game, game.view(), judge, name)
        except Unmet as found:
            unmet = unmet or found
        if game.over:
            break
        game.do(Move("step", trial.speak(game, rng)))
    else:
        raise Unmet(f"an end under a judge that says {name}", f"{trial.options.max_steps} steps", game.where())
    if not judge.num_calls:
        raise NotApplicable("make_env takes judge=, but that judge was never asked")
    if unmet:
        raise unmet


def _check_pay(game: Game, view: View, judge: StagedJudge, name: str) -> None:
    mended = not judge.lasts and any(info.get("redrawn") for info in view.infos.values())
    failed = judge.has_failed and not mended
    for agent, reward in view.rewards.items():
        if not math.isfinite(reward) or (failed and reward != 0):
            expected = "nothing" if failed else "a finite reward"
            raise Unmet(f"{expected} to be paid to {agent} under a judge that says {name}", f"{reward}", game.where())
    for agent, info in view.infos.items():
        if info.get("unscored") is not failed:
            found = f"{info.get('unscored')!r} under a judge that says {name}"
            raise Unmet(f"infos[{agent!r}]['unscored'] to be {failed}", found, game.where())
