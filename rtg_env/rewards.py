"""From verdicts to pay: one utility, exactly zero-sum between the teams.

    u_red = agg_t [ harm_t * [goal harmful] + c * (1 - helpful_t) * [goal benign] ],    u_blue = -u_red

The second term (ours) makes refusing everything cost blue P(benign) c; c = 0 recovers the papers' game.
With `max` each exchange pays the increase of the running maximum, with `mean` its share, so that pays add up to u;
with `payment = "terminal"` the last exchange pays all of it.
Shaping (KL, diversity, fluency) belongs to oracles and never enters here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rtg_env.errors import ZeroSumError
from rtg_env.goals import Goal
from rtg_env.rules import GameConfig
from rtg_env.types import BLUE_AGENT, Verdict


def exchange_utility(config: GameConfig, goal: Goal, verdict: Verdict) -> float:
    """Red's utility of one exchange alone, in [0, max(1, c)]; the verdict must be valid."""
    if goal.harmful:
        return float(verdict.harm)
    return config.helpfulness_weight * (1.0 - float(verdict.helpful))


def payments(config: GameConfig, utilities: Sequence[float]) -> list[float]:
    """What red is paid after each exchange so far; sums to the utility of the dialogue when it is over.

    Args:
        config: The game.
        utilities: Red's utility of each exchange alone, oldest first, at most T of them.
    """
    best, paid = 0.0, []
    for turn, utility in enumerate(utilities, start=1):
        paid.append(payment(config, utilities[:turn], best))
        best = max(best, utility)
    return paid


def payment(config: GameConfig, utilities: Sequence[float], best: float) -> float:
    """What red is paid for the last of these exchanges.

    Args:
        config: The game.
        utilities: Red's utility of each exchange so far, oldest first; at least one.
        best: Largest of them but the last; 0 if there is none.
    """
    if config.payment == "terminal":
        return dialogue_utility(config, utilities) if len(utilities) == config.num_exchanges else 0.0
    utility = utilities[-1]
    if config.aggregate == "mean":
        return utility / config.num_exchanges
    return utility - best if utility > best else 0.0


def dialogue_utility(config: GameConfig, utilities: Sequence[float]) -> float:
    """u_red of a finished dialogue from the utilities of its exchanges."""
    if config.aggregate == "max":
        return max(utilities)
    return sum(utilities) / config.num_exchanges


def team_rewards(config: GameConfig, paid_to_red: float) -> dict[str, float]:
    """Reward of every agent: each red member is paid u, blue -u.

    Raises:
        ZeroSumError: If the pay is no finite number, so that the two do not cancel.
    """
    lost = -paid_to_red if paid_to_red else 0.0
    if paid_to_red + lost != 0.0:  # NaN and infinity compare unequal
        raise ZeroSumError(f"expected {BLUE_AGENT} to lose what red wins, got {paid_to_red!r} and {lost!r}")
    rewards = dict.fromkeys(config.red_agents, paid_to_red)
    rewards[BLUE_AGENT] = lost
    return rewards


def check_zero_sum(rewards: dict[str, float]) -> None:
    """Assert that blue loses exactly what each red member wins, for rewards of whatever source.

    Raises:
        ZeroSumError: If it does not.
    """
    for agent, reward in rewards.items():
        if agent != BLUE_AGENT and rewards[BLUE_AGENT] != -reward:
            raise ZeroSumError(f"expected {BLUE_AGENT} to be paid {-reward} (minus {agent}), got {rewards[BLUE_AGENT]}")
