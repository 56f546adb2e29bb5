"""The miniature game: what OpenSpiel asks of a game, values by hand, and the same game in our environment."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import numpy as np
import pytest

pyspiel = pytest.importorskip("pyspiel")
from open_spiel.python import policy as openspiel_policy  # noqa: E402
from open_spiel.python.algorithms import cfr  # noqa: E402
from open_spiel.python.algorithms.expected_game_score import policy_value  # noqa: E402

from rtg_env.errors import ConfigError, PolicyError  # noqa: E402
from rtg_env.types import Observation  # noqa: E402
from rtg_solvers import tabular  # noqa: E402
from rtg_solvers.rollout import draw_pairings, play, utilities  # noqa: E402
from rtg_solvers.tabular import TableSettings  # noqa: E402
from rtg_solvers.tabular_dialogue import TabularDialogue  # noqa: E402

SMALL = TableSettings(num_exchanges=2, num_goals=2, num_styles=2)


def states(game):
    """Every state, depth first."""
    waiting = [game.new_initial_state()]
    while waiting:
        state = waiting.pop()
        yield state
        waiting += [state.child(action) for action in state.legal_actions()]


@pytest.mark.parametrize("settings", [TableSettings(num_exchanges=1), SMALL, TableSettings(benign_prob=0.0)])
def test_chances_sum_to_one_and_pay_is_zero_sum_within_the_stated_bounds(settings: TableSettings) -> None:
    game = tabular.load(settings)
    for state in states(game):
        if state.is_chance_node():
            assert sum(prob for _, prob in state.chance_outcomes()) == pytest.approx(1.0, abs=1e-12)
        if state.is_terminal():
            red, blue = state.returns()
            assert red == -blue
            assert 0.0 <= red <= game.max_utility()


def test_information_is_unique_to_a_player_and_holds_all_that_it_did_and_knew() -> None:
    """Perfect recall: the states of one information state share the player's own history."""
    histories: dict[str, tuple] = {}
    actions: dict[str, list[int]] = {}

    def walk(state, own) -> None:
        if state.is_terminal():
            return
        player, name = state.current_player(), None
        if player >= 0:
            name = state.information_state_string(player)
            assert histories.setdefault(name, (player, own[player])) == (player, own[player])
            assert actions.setdefault(name, state.legal_actions()) == state.legal_actions()
        for action in state.legal_actions():
            after = dict(own)
            if player >= 0:
                after[player] = (*own[player], (name, action))
            walk(state.child(action), after)

    walk(tabular.load(SMALL).new_initial_state(), {0: (), 1: ()})
    assert {player for player, _ in histories.values()} == {0, 1}


def test_blue_learns_of_the_goal_only_from_what_is_said() -> None:
    game = tabular.load(SMALL)
    told = set()
    for goal in (0, 1, 2):
        state = game.new_initial_state()
        state.apply_action(goal)
        if goal:
            state.apply_action(0)
        assert state.current_player() == tabular.BLUE
        told.add(state.information_state_string(tabular.BLUE))
        assert f"goal {goal}" in state.information_state_string(tabular.RED)
    assert len(told) == 1


def test_copies_go_on_as_their_original_does() -> None:
    """A copied or unpickled game has lost its attributes (OpenSpiel #641); nothing may depend on them."""
    game = tabular.load(TableSettings(num_goals=3, seed=5))
    state = game.new_initial_state()
    for action in (2, 1, 1):
        state.apply_action(action)
    twins = [state.clone(), copy.deepcopy(state), pickle.loads(pickle.dumps(state))]  # noqa: S301 - our own bytes
    for other in (copy.deepcopy(game), pickle.loads(pickle.dumps(game))):  # noqa: S301
        assert tabular.settings_of(other) == tabular.settings_of(game)
        twin = other.new_initial_state()
        for action in (2, 1, 1):
            twin.apply_action(action)
        twins.append(twin)
    for twin in twins:
        assert twin.chance_outcomes() == state.chance_outcomes()
        twin.apply_action(1)
        assert twin.information_state_string(0) == "red goal 2 1:1!"
        assert twin.legal_actions() == [0, 1]
    assert state.information_state_string(0) == "red goal 2 1:"


@pytest.mark.parametrize("seed", range(4))
def test_one_exchange_is_solved_by_hand(seed: int) -> None:
    """With its second tactic red gives itself away, and blue refuses: red does better to speak like the benign user.

    Blue then has one information state that matters, and takes the style with the least loss over all goals.
    """
    settings = TableSettings(num_exchanges=1, seed=seed, benign_prob=0.4)
    harm, helpful, goals = tabular.chances(settings)
    losses = goals[0] * (1 - helpful) + sum(goals[1 + g] * harm[g, 0] for g in range(settings.num_goals))
    assert losses[0] == pytest.approx(0.4)  # refusing costs the benign user everything, and nothing else
    assert tabular.exact_value(tabular.load(settings)) == pytest.approx(losses.min(), abs=1e-9)


def test_the_benign_user_is_paid_for_the_least_help_of_the_dialogue() -> None:
    game = tabular.load(TableSettings(num_exchanges=2, helpfulness_weight=2.0))
    state = game.new_initial_state()
    for action in (0, 2, 0, 1, 0):  # goal 0; style 2, no harm; style 1, no harm: it helps 0.7
        assert not state.is_terminal()
        state.apply_action(action)
    assert state.returns() == pytest.approx([2 * 0.3, -2 * 0.3])


def test_without_a_price_on_silence_blue_refuses_and_loses_nothing() -> None:
    game = tabular.load(TableSettings(helpfulness_weight=0.0))
    assert tabular.exact_value(game) == pytest.approx(0.0, abs=1e-9)
    refuse = openspiel_policy.TabularPolicy(game)
    refuse.action_probability_array[:] = np.eye(3)[0]
    red = openspiel_policy.UniformRandomPolicy(game)
    assert policy_value(game.new_initial_state(), [red, refuse])[0] == 0.0


@pytest.mark.parametrize(("settings", "steps"), [(TableSettings(num_exchanges=1), 100), (SMALL, 60)])
def test_the_program_agrees_with_counterfactual_regret_minimisation(settings: TableSettings, steps: int) -> None:
    game = tabular.load(settings)
    solver = cfr.CFRPlusSolver(game)
    for _ in range(steps):
        solver.evaluate_and_update_policy()
    average = solver.average_policy()
    value = policy_value(game.new_initial_state(), [average, average])[0]
    assert value == pytest.approx(tabular.exact_value(game), abs=2e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"num_exchanges": 0}, {"num_goals": 0}, {"num_styles": 1}, {"benign_prob": 1.0}, {"helpfulness_weight": -1.0}],
)
def test_sizes_that_make_no_game_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TableSettings(**wrong)


def plans(game, player: int) -> list[openspiel_policy.TabularPolicy]:
    """Every deterministic policy of one player; the other player's part is uniform."""
    keys = [key for key in openspiel_policy.TabularPolicy(game).state_lookup if key.startswith(("red", "blue")[player])]
    found = []
    template = openspiel_policy.TabularPolicy(game)
    legal = [np.flatnonzero(template.action_probability_array[template.state_lookup[key]]) for key in keys]
    for choice in product(*legal):
        policy = openspiel_policy.TabularPolicy(game)
        for key, action in zip(keys, choice, strict=True):
            row = policy.action_probability_array[policy.state_lookup[key]]
            row[:] = 0.0
            row[action] = 1.0
        found.append(policy)
    return found


def mixed(game, rng: np.random.Generator) -> openspiel_policy.TabularPolicy:
    """A random behavioural policy of both players."""
    policy = openspiel_policy.TabularPolicy(game)
    table = policy.action_probability_array
    table *= rng.random(table.shape)
    table /= table.sum(axis=1, keepdims=True)
    return policy


def test_the_environment_has_the_payoff_matrix_of_the_tabular_game() -> None:
    bridge = TabularDialogue(TableSettings(num_exchanges=1))
    reds, blues = plans(bridge.table, tabular.RED), plans(bridge.table, tabular.BLUE)
    assert (len(reds), len(blues)) == (2**2, 3**2)
    for red, blue in product(reds, blues):
        expected = policy_value(bridge.table.new_initial_state(), [red, blue])[0]
        assert bridge.expected_utility(red, blue) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("settings", [TableSettings(seed=3), TableSettings(num_exchanges=3, num_goals=3, num_styles=2)])
def test_longer_dialogues_have_the_payoffs_of_the_tabular_game(settings: TableSettings) -> None:
    bridge, rng = TabularDialogue(settings), np.random.default_rng(0)
    for _ in range(2):
        red, blue = mixed(bridge.table, rng), mixed(bridge.table, rng)
        leaves = list(bridge.leaves(red, blue))
        assert sum(leaf.prob for leaf in leaves) == pytest.approx(1.0, abs=1e-12)
        value = sum(leaf.prob * leaf.utility for leaf in leaves)
        assert value == pytest.approx(policy_value(bridge.table.new_initial_state(), [red, blue])[0], abs=1e-12)


class Watcher:
    """Notes what its side is shown beside what OpenSpiel's player knows."""

    def __init__(self, policy) -> None:
        self.policy, self.seen = policy, set()

    def action_probabilities(self, state, player):
        self.seen.add(state.information_state_string(player))
        return self.policy.action_probabilities(state, player)


def test_players_of_the_environment_know_what_players_of_the_tabular_game_know() -> None:
    bridge = TabularDialogue(SMALL)
    red, blue = (Watcher(openspiel_policy.UniformRandomPolicy(bridge.table)) for _ in range(2))
    list(bridge.leaves(red, blue))
    known = openspiel_policy.TabularPolicy(bridge.table).state_lookup
    assert red.seen == {key for key in known if key.startswith("red")}
    assert blue.seen == {key for key in known if key.startswith("blue")}


def test_blue_is_not_shown_the_goal_and_both_are_shown_every_sentence() -> None:
    bridge = TabularDialogue(SMALL)
    uniform = openspiel_policy.UniformRandomPolicy(bridge.table)
    seen: dict[str, list[Observation]] = {"red": [], "blue": []}

    class Open:
        def __init__(self, name: str) -> None:
            self.name, self.inner = name, bridge.speaker(name, uniform)

        def act(self, observations, seeds):
            seen[self.name] += observations
            return self.inner.act(observations, seeds)

    pairings = draw_pairings(
        bridge.game, np.random.default_rng(0), count=20, red=lambda _: "red", blue=lambda _: "blue"
    )
    played = play(bridge.game, {name: Open(name) for name in ("red", "blue")}, pairings)
    assert {item.goal for item in seen["blue"]} == {None}
    assert {item.goal.id for item in seen["red"]} == {"goal-1", "goal-2"}
    told = {tuple(text for exchange in item.transcript.exchanges for text in exchange) for item in played}
    for observation in seen["red"] + seen["blue"]:
        heard = tuple(text for _, text in observation.messages)
        assert any(dialogue[: len(heard)] == heard for dialogue in told)
        assert len(heard) == 2 * observation.turn + (observation.agent_id == "blue_0")


def test_dialogues_drawn_from_seeds_are_worth_what_enumeration_says() -> None:
    bridge, rng = TabularDialogue(TableSettings(num_exchanges=2, seed=1)), np.random.default_rng(1)
    red, blue = mixed(bridge.table, rng), mixed(bridge.table, rng)
    pairings = draw_pairings(bridge.game, rng, count=1500, red=lambda _: "r", blue=lambda _: "b")
    played = play(bridge.game, {"r": bridge.speaker("r", red), "b": bridge.speaker("b", blue)}, pairings)
    mean, se = utilities(played).mean(), utilities(played).std() / np.sqrt(1500)
    assert abs(mean - bridge.expected_utility(red, blue)) <= 3.5 * se


def test_sentences_of_another_game_are_refused() -> None:
    bridge = TabularDialogue(SMALL)
    with pytest.raises(PolicyError, match="Tactic 0"):
        bridge.dialogue(Observation("blue_0", (("user", "hello"),), 0, 2))
