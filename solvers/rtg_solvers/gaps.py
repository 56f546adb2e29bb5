"""How far a mixture is from an equilibrium, and how much a side has learned: on fresh dialogues, with intervals.

`oracle_gap` is what the newest best responses gain over the mixtures they were trained against; a lower bound on
NashConv. Where one side learned alone, in stages (`methods.attackers`), the mixture is one pair: the member that training
began at and the opponent that it met; the gain is the learner's, and the side that did not learn gains 0.
`independent_gap` lets policies from outside try, whoever made them: the best of them is chosen on one half of
the dialogues and its gain is estimated on the other; a lower bound too, and the honest one, because nothing that learned
with the populations has a say. `restricted_gap` is what the best member inside the populations gains over the reported
mixture: the deviation is chosen on the payoff tensor and its gain is estimated on dialogues that the tensor has not seen
(on the matrix that was solved it is 0 by construction). All count the game's utility only.

Gains are paired: a deviation plays the same goals, opponents and seeds as the mixture it deviates from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from rtg_env.errors import ConfigError, JudgeError
from rtg_env.transcripts import Played
from rtg_env.types import Role
from rtg_solvers.empirical import Mixture
from rtg_solvers.intervals import gain_interval
from rtg_solvers.measures import Estimate, paired_estimate
from rtg_solvers.payoffs import PayoffTensor
from rtg_solvers.rollout import Game, Pairing, draw_pairings, utilities
from rtg_solvers.seeding import rng_for

_ROLES: Final[tuple[Role, ...]] = ("red", "blue")
_SURE: Final = 1e-9
"""A member whose weight is this near to 1 is played with certainty."""

PlayUnit = Callable[[str, Sequence[Pairing]], list[Played]]
"""Plays a named unit of dialogues, or reads it back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Gains of both sides' deviations over a mixture; each gain is what the deviating side wins."""

    red_deviation: str
    """Version of red's deviation."""

    blue_deviation: str
    """Version of blue's deviation."""

    red_gain: Estimate
    """Of red over its mixture, against blue's mixture."""

    blue_gain: Estimate
    """Of blue over its mixture, against red's mixture."""

    total_interval: tuple[float, float] | None = None
    """Of the sum of the clipped gains, from both sides' dialogues together."""

    @property
    def total(self) -> float:
        """Sum of the gains, a failed best response counted as 0: an estimate of a lower bound on NashConv."""
        return clipped(self.red_gain.mean) + clipped(self.blue_gain.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """Of the sum of the clipped gains, 95 %.

        Without `total_interval`, the sum of the clipped ends: covers at least as often as both gains' intervals do
        together.
        """
        if self.total_interval is not None:
            return self.total_interval
        low = clipped(self.red_gain.low) + clipped(self.blue_gain.low)
        return low, clipped(self.red_gain.high) + clipped(self.blue_gain.high)


def clipped(gain: float) -> float:
    """A gain counted from 0; NaN stays NaN."""
    return gain if math.isnan(gain) else max(0.0, gain)


def measure_gap(
    name: str,
    game: Game,
    mixture: Mixture,
    deviations: tuple[str, str],
    play_unit: PlayUnit,
    *,
    seed: int,
    count: int,
) -> Gap:
    """Gains of (red, blue) deviations over a mixture, on `count` fresh deals each.

    Args:
        name: Prefix of the units.
        game: Rules, goals, judge.
        mixture: What is deviated from.
        deviations: Red's and blue's version.
        play_unit: Plays dialogues.
        seed: Of the run; deals depend on it and on `name`.
        count: Deals.
    """
    base = draw_pairings(
        game,
        rng_for(seed, "gap", name),
        count=count,
        red=lambda rng: mixture.draw("red", rng),
        blue=lambda rng: mixture.draw("blue", rng),
    )
    red_version, blue_version = deviations
    mixed = play_unit(f"{name}/mixture", base)

    def played(role: Role, version: str) -> list[Played]:
        changed = [deviating(pairing, role, version) for pairing in base]
        return mixed if changed == base else play_unit(f"{name}/{role}", changed)  # nobody deviates: nothing is played

    red_played, blue_played = played("red", red_version), played("blue", blue_version)
    return Gap(
        red_deviation=red_version,
        blue_deviation=blue_version,
        red_gain=paired_gain(game, "red", red_played, mixed),
        blue_gain=paired_gain(game, "blue", blue_played, mixed),
        total_interval=_total_interval(game, mixed, red_played, blue_played),
    )


def independent_gap(
    name: str,
    game: Game,
    mixture: Mixture,
    candidates: Mapping[Role, Sequence[str]],
    play_unit: PlayUnit,
    *,
    seed: int,
    count: int,
) -> Gap:
    """Gains of each side's best candidate over a mixture; chosen on `count // 2` deals, estimated on as many others.

    Sensible candidates: red {plain goal, templates, a fresh best response}, blue {always refuse, always comply, the base
    model with a safety prompt, a fresh best response}; fresh means another seed and a larger budget than the run's, from
    the base. Choosing on dialogues of their own keeps the estimate free of the winner's luck.

    Args:
        name: Prefix of the units.
        game: Rules, goals, judge.
        mixture: What is deviated from.
        candidates: Versions by side, known to `play_unit`; at least one each.
        play_unit: Plays dialogues.
        seed: Of the run; deals depend on it and on `name`.
        count: Deals of both halves together; an even number, at least 4.

    Returns:
        The chosen deviations, and the gain of each with a 95 % interval, clustered by goal.

    Raises:
        ConfigError: If a side has no candidate, or the count is odd or too small.
    """
    if count < 4 or count % 2 or not all(candidates.get(role) for role in _ROLES):
        raise ConfigError(
            f"expected candidates for both sides and an even count >= 4, got "
            f"{[len(candidates.get(role, ())) for role in _ROLES]} and {count}"
        )
    pairings = draw_pairings(
        game,
        rng_for(seed, "gap", name),
        count=count,
        red=lambda rng: mixture.draw("red", rng),
        blue=lambda rng: mixture.draw("blue", rng),
    )
    halves = {"chosen": pairings[: count // 2], "estimated": pairings[count // 2 :]}
    mixed = play_unit(f"{name}/estimated/mixture", halves["estimated"])
    best: dict[Role, str] = {}
    gains: dict[Role, Estimate] = {}
    for role in _ROLES:

        def tried(half: str, version: str, role: Role = role) -> list[Played]:
            return play_unit(
                f"{name}/{half}/{version}", [deviating(pairing, role, version) for pairing in halves[half]]
            )

        best[role] = most_paid(role, {version: tried("chosen", version) for version in candidates[role]})
        gains[role] = paired_gain(game, role, tried("estimated", best[role]), mixed)
    return Gap(red_deviation=best["red"], blue_deviation=best["blue"], red_gain=gains["red"], blue_gain=gains["blue"])


def most_paid(role: Role, played: Mapping[str, Sequence[Played]]) -> str:
    """Who wins most for its side on average over scored dialogues; the first of equals.

    Raises:
        JudgeError: If not one dialogue of a candidate was scored.
    """
    sign, means = 1.0 if role == "red" else -1.0, {}
    for version, dialogues in played.items():
        scored = utilities(dialogues)
        scored = scored[~np.isnan(scored)]
        if not scored.size:
            raise JudgeError(
                f"expected a scored dialogue of {version}, all {len(dialogues)} are unscored; mend the judge"
            )
        means[version] = sign * float(scored.mean())
    return max(means, key=lambda version: means[version])


def deviating(pairing: Pairing, role: Role, version: str) -> Pairing:
    """The same deal and seed with another policy on one side."""
    return replace(pairing, red=version) if role == "red" else replace(pairing, blue=version)


def _total_interval(
    game: Game, mixed: Sequence[Played], red: Sequence[Played], blue: Sequence[Played]
) -> tuple[float, float]:
    """Each side may deviate or stay: the sum of the clipped gains is NashConv in that 2 x 2 choice."""
    goal_ids = [item.transcript.goal.id for item in mixed]
    if len(set(goal_ids)) < 2:
        return math.nan, math.nan
    stay = utilities(mixed)
    found = gain_interval(
        np.stack([stay, utilities(red)]),
        np.stack([stay, utilities(blue)]),
        goal_ids,
        bounds=(0.0, game.config.max_utility),
    )
    return found.low, found.high


def paired_gain(game: Game, role: Role, deviation: Sequence[Played], base: Sequence[Played]) -> Estimate:
    """What a side wins by a deviation, dialogue by dialogue on the same deals."""
    goal_ids = [item.transcript.goal.id for item in base]
    first, second = (deviation, base) if role == "red" else (base, deviation)
    return paired_estimate(utilities(first), utilities(second), goal_ids, max_utility=game.config.max_utility)


def oracle_deviations(mixture: Mixture, new: Mapping[Role, str], asked: Collection[Role]) -> tuple[str, str]:
    """Whom red and blue deviate to for the `oracle_gap` of a mixture.

    A side deviates to the member that it has just learned. One that was to learn and found nothing better deviates to its
    newest member. One that was not to learn deviates to the member that the mixture plays, and so gains nothing; if the
    mixture plays several, to its newest member, too.

    Args:
        mixture: What the new members were trained against.
        new: Versions that were learned, by side.
        asked: Sides that were to learn.
    """

    def chosen(role: Role, names: Sequence[str], weights: np.ndarray) -> str:
        played = int(np.argmax(weights))
        stays = role not in asked and weights[played] > 1 - _SURE
        return new.get(role, names[played] if stays else names[-1])

    return chosen("red", mixture.red_names, mixture.red), chosen("blue", mixture.blue_names, mixture.blue)


def restricted_deviations(payoffs: PayoffTensor, mixture: Mixture) -> tuple[str, str]:
    """The most promising single members against the mixture, by the payoffs that were solved.

    A member that the mixture already plays with certainty is no deviation, unless it is alone.
    """
    mean = payoffs.mean
    red = _best(mean @ mixture.blue, mixture.red)
    blue = _best(-(mixture.red @ mean), mixture.blue)
    return payoffs.red[red], payoffs.blue[blue]


def _best(values: np.ndarray, weights: np.ndarray) -> int:
    open_to = np.flatnonzero(weights < 1 - _SURE)
    candidates = open_to if open_to.size else np.arange(values.size)
    # Among ties (all of the support ties at an equilibrium) prefer what the mixture plays least.
    order = np.lexsort((weights[candidates], -np.round(values[candidates], 9)))
    return int(candidates[order[0]])
