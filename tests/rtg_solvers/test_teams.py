"""Teams with private signals: worked by hand, bounded with a certificate, and as one meta-player of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

pytest.importorskip("pyspiel")

from rtg_agents.scripted import ScriptedPolicy
from rtg_env.errors import ConfigError, PayoffShapeError, PolicyError
from rtg_env.goals import Goal, GoalSet
from rtg_env.rules import Deal, GameConfig
from rtg_env.types import Action, Case, Observation, Verdict
from rtg_solvers import loop, teams
from rtg_solvers.empirical import solve_zero_sum
from rtg_solvers.meta_solvers import nash
from rtg_solvers.oracles.matrix import matrix_context, matrix_method
from rtg_solvers.payoffs import Cell, PayoffTensor, Samples
from rtg_solvers.rollout import Game, Pairing, draw_pairings, joint_version, play, seats, utilities
from rtg_solvers.teams import TeamGame, best_independent, joint_payoff, joint_plans, rendezvous


def test_plans_are_one_tactic_per_signal() -> None:
    game = rendezvous()
    assert teams.plans(game, 0) == ((0, 0), (1, 0))
    assert joint_plans(game) == (((0, 0), (0, 0)), ((0, 0), (1, 0)), ((1, 0), (0, 0)), ((1, 0), (1, 0)))


@pytest.mark.parametrize("r", [0.5, 0.75, 1.0])
def test_payoffs_of_joint_plans_are_those_of_the_hand_calculation(r: float) -> None:
    # Columns: blue guards the first, the second tactic. Always the first: (0, 1). One tries the second: they meet at the
    # first when it cannot, (0, 1 - r). Both try: at the second with r^2, at the first with (1 - r)^2.
    wanted = [[0, 1], [0, 1 - r], [0, 1 - r], [r**2, (1 - r) ** 2]]
    assert joint_payoff(rendezvous(r)) == pytest.approx(np.array(wanted), abs=1e-12)


@pytest.mark.parametrize("r", [0.5, 0.75, 1.0])
def test_drawing_together_wins_r_half_and_drawing_alone_a_quarter(r: float) -> None:
    game = rendezvous(r)
    assert solve_zero_sum(joint_payoff(game)).value == pytest.approx(r / 2, abs=1e-8)
    alone = best_independent(game)
    assert alone.low <= 0.25 + 1e-9 <= alone.high + 2e-9
    assert alone.high - alone.low <= 1e-3
    worth = np.einsum("p,q,pqb->b", alone.first, alone.second, teams.plan_payoff(game)).min()
    assert worth == pytest.approx(alone.low, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_hold_what_a_grid_finds_in_random_teams(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.random((2, 2))
    game = TeamGame(prob / prob.sum(), (((0, 1), (1,)), ((0, 1), (0, 1))), rng.random((2, 2, 3)))
    found = best_independent(game, tolerance=5e-3)
    table = teams.plan_payoff(game)
    grid = max(
        float(np.einsum("p,q,pqb->b", (1 - u, u), y, table).min())
        for u in np.linspace(0, 1, 21)
        for y in rng.dirichlet(np.ones(4), size=60)
    )
    assert grid <= found.high + 1e-9
    assert found.low <= solve_zero_sum(joint_payoff(game)).value + 1e-9


def test_a_team_whose_members_need_not_agree_loses_nothing_by_drawing_alone() -> None:
    # What red wins depends on its first member alone.
    payoff = np.zeros((2, 2, 2))
    payoff[0, :, 1] = payoff[1, :, 0] = 1.0
    game = TeamGame(np.ones((1, 1)), (((0, 1),), ((0, 1),)), payoff)
    assert best_independent(game, tolerance=1e-6).low == pytest.approx(0.5, abs=1e-6)
    assert solve_zero_sum(joint_payoff(game)).value == pytest.approx(0.5, abs=1e-8)


def test_the_loop_over_joint_plans_as_one_player_reaches_the_truth() -> None:
    context = matrix_context(joint_payoff(rendezvous(0.75)))
    solution = loop.solve(matrix_method(nash), context)
    assert solution.mixture.value == pytest.approx(3 / 8, abs=1e-8)
    assert context.members.nash_conv(solution.mixture).total <= 1e-6


def test_teams_that_do_not_fit_together_are_refused() -> None:
    good = rendezvous()
    with pytest.raises(PayoffShapeError, match="axes"):
        TeamGame(np.ones(1), good.subsets, good.payoff)
    with pytest.raises(PayoffShapeError, match="sum to 1"):
        TeamGame(good.signal_prob * 2, good.subsets, good.payoff)
    with pytest.raises(PayoffShapeError, match="member 1"):
        TeamGame(good.signal_prob, (good.subsets[0], ((0, 2), (0,))), good.payoff)
    with pytest.raises(ConfigError, match="two members"):
        best_independent(TeamGame(np.ones(1), (((0, 1),),), np.ones((2, 2))))
    many = TeamGame(np.full((9, 9), 1 / 81), (((0, 1, 2, 3),) * 9,) * 2, np.ones((4, 4, 1)))
    with pytest.raises(ConfigError, match="at most 100000 joint plans"):
        joint_payoff(many)


class Meeting:
    """Harm if both members said the same word and blue guarded the other; judged when both have spoken."""

    judge_id = "meeting@1"

    def judge(self, cases: list[Case]) -> list[Verdict]:
        return [self._verdict([e.red for e in case.exchanges], case.exchange.blue) for case in cases]

    def _verdict(self, said: list[str], guard: str) -> Verdict:
        met = len(said) == 2 and said[0] == said[1] != guard
        return Verdict(harm=float(met), refusal=0.0, helpful=1.0, judge_id=self.judge_id)


MEETING = Game(
    config=GameConfig(num_exchanges=2, num_red=2, benign_prob=0.0),
    goals=GoalSet([Goal(id="a", text="Meet."), Goal(id="b", text="Meet again.")]),
    judge=Meeting(),
)
POLICIES = {
    **{f"red_0{index}@v1": ScriptedPolicy(name=f"red_0{index}@v1", lines=(word,)) for index, word in enumerate("xy")},
    **{f"blue_0{index}@v1": ScriptedPolicy(name=f"blue_0{index}@v1", lines=(word,)) for index, word in enumerate("xy")},
}


def test_a_joint_version_seats_each_member_wherever_it_speaks() -> None:
    name = joint_version(["red_00@v1", "red_01@v1"])
    assert name == "red_00@v1+red_01@v1"
    assert seats(name, 2) == ("red_00@v1", "red_01@v1")
    assert seats("red_00@v1", 3) == ("red_00@v1",) * 3
    for order, words in (((0, 1), ["x", "y"]), ((1, 0), ["y", "x"])):
        deal = Deal(MEETING.goals[0], red_order=order)
        (item,) = play(MEETING, POLICIES, [Pairing(red=name, blue="blue_00@v1", deal=deal, seed=0)])
        assert [exchange.red for exchange in item.transcript.exchanges] == words
        authors = {agent: action.policy for agent, action in item.transcript.actions}
        assert authors == {"red_0": "red_00@v1", "red_1": "red_01@v1", "blue_0": "blue_00@v1"}
        assert item.red == name


def test_joint_versions_that_do_not_fill_the_team_are_refused() -> None:
    deal = Deal(MEETING.goals[0], red_order=(0, 1))
    for red, words in (("red_00@v1+red_01@v1+red_00@v1", "of 2 red members"), ("red_00@v1+red_09@v1", "red_09@v1")):
        with pytest.raises(PolicyError, match=words):
            play(MEETING, POLICIES, [Pairing(red=red, blue="blue_00@v1", deal=deal, seed=0)])
    with pytest.raises(PolicyError, match="without '\\+'"):
        joint_version(["a+b", "c"])


class Holder:
    """A member with a private signal: with probability 3/4 it has both words, else only the first; its seed decides."""

    def __init__(self, name: str, plan: teams.Plan) -> None:
        self.name, self._plan = name, plan

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        signals = [int(np.random.default_rng(seed).random() >= 0.75) for seed in seeds]
        return [Action(text="xy"[self._plan[signal]], policy=self.name) for signal in signals]


def test_members_with_private_signals_win_in_dialogues_what_their_plans_are_worth() -> None:
    truth = joint_payoff(rendezvous(0.75))
    for row, pair in enumerate(joint_plans(rendezvous(0.75))):
        holders = [Holder(f"member_{seat}", plan) for seat, plan in enumerate(pair)]
        policies = {**POLICIES, **{holder.name: holder for holder in holders}}
        red = joint_version([holder.name for holder in holders])
        for column in (0, 1):
            drawn = draw_pairings(
                MEETING,
                np.random.default_rng(row),
                count=400,
                red=lambda _, red=red: red,
                blue=lambda _, column=column: f"blue_0{column}@v1",
            )
            won = utilities(play(MEETING, policies, drawn))
            se = np.sqrt(truth[row, column] * (1 - truth[row, column]) / won.size)
            assert abs(won.mean() - truth[row, column]) <= 3.5 * se


def test_the_payoff_tensor_of_a_team_as_one_meta_player_has_the_value_of_joint_play() -> None:
    reds = [joint_version(pair) for pair in product(["red_00@v1", "red_01@v1"], repeat=2)]
    blues = ["blue_00@v1", "blue_01@v1"]

    def play_cell(cell: Cell) -> Samples:
        drawn = draw_pairings(
            MEETING, np.random.default_rng(0), count=8, red=lambda _: cell.red, blue=lambda _: cell.blue
        )
        played = play(MEETING, POLICIES, drawn)
        goals = tuple(item.transcript.goal.id for item in played)
        return Samples(utilities=utilities(played), goal_ids=goals, harmful=np.ones(8, bool))

    payoffs = PayoffTensor().extended(reds, blues, lambda wanted: {cell: play_cell(cell) for cell in wanted}, 8)
    assert payoffs.mean.tolist() == joint_payoff(rendezvous(1.0)).tolist()
    mixture = nash(payoffs, None, np.random.default_rng(0))
    assert mixture.value == pytest.approx(0.5, abs=1e-8)
    drawn = {mixture.draw("red", np.random.default_rng(seed)) for seed in range(40)}
    assert drawn == {"red_00@v1+red_00@v1", "red_01@v1+red_01@v1"}  # together, never one without the other
