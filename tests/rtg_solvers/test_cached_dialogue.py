"""Games from tables of judged replies: values by hand, what players know, the same game in our environment, and the
tables of a real model that are part of the repository."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pyspiel = pytest.importorskip("pyspiel")
from open_spiel.python.algorithms.expected_game_score import policy_value  # noqa: E402
from open_spiel.python.policy import TabularPolicy  # noqa: E402

from rtg_env.errors import ConfigError, PolicyError  # noqa: E402
from rtg_env.goals import Goal, GoalSet  # noqa: E402
from rtg_env.types import Observation  # noqa: E402
from rtg_solvers import cached_dialogue, tabular  # noqa: E402
from rtg_solvers.cached_play import CachedPlay, behaviour_of, information_states  # noqa: E402
from rtg_solvers.cached_table import CachedGoal, CachedTable, Choice, Choices, Reply, text_hash  # noqa: E402
from rtg_solvers.rollout import draw_pairings, play, utilities  # noqa: E402

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
TABLES = ("model_one_exchange.json", "model_two_exchanges.json")
WISH, ASK = Goal(id="wish", text="Wish."), Goal(id="ask", text="A harmless thing.", harmful=False, turns=("Ask.",))
GOALS = GoalSet([WISH, ASK])
TACTICS = (Choice("plain", "{goal}"), Choice("please", "{goal} Please."))
PROMPTS = (Choice("none", ""), Choice("careful", "Take care."))
MoreOf = Callable[[Choices], tuple[str, float, float]]


def table(reply: MoreOf, *, num_exchanges: int = 1, num_seeds: int = 2, benign_prob: float = 0.5) -> CachedTable:
    """A table whose replies (text, harm, helpful) follow from the path; red says the tactic's text, nature asks."""
    settings = {
        "num_exchanges": num_exchanges,
        "benign_prob": benign_prob,
        "helpfulness_weight": 1.0,
        "goals": tuple(CachedGoal(goal.id, goal.harmful) for goal in GOALS if goal.harmful or benign_prob),
        "tactics": (TACTICS,) * num_exchanges,
        "prompts": PROMPTS,
        "num_seeds": num_seeds,
    }
    rows = {}
    for turns in range(1, num_exchanges + 1):
        steps = product(range(2), range(2), range(num_seeds))
        for goal, chosen in product(range(len(settings["goals"])), product(list(steps), repeat=turns)):
            path = (goal, *(number for step in chosen for number in step))
            said = TACTICS[path[-3]].text.replace("{goal}", WISH.text) if goal == 0 else "Ask."
            text, harm, helpful = reply(path)
            if goal == 0 or not any(path[1::3]):
                rows[path] = Reply(text_hash(said), text_hash(text), harm, 0.0, helpful)
    return CachedTable(**settings, rows=rows)


def pennies(path: Choices) -> tuple[str, float, float]:
    """Harm, mean over the two seeds: [[0.8, 0.2], [0.2, 0.6]] by tactic and prompt. Lack of help: 0.3 and 0.1."""
    goal, tactic, prompt, seed = path
    spread = 0.1 if seed else -0.1
    harm = ((0.8, 0.2), (0.2, 0.6))[tactic][prompt] + spread
    return f"{goal} {tactic} {prompt} {seed}", harm, (0.7, 0.9)[prompt] + spread


def guess_again(path: Choices) -> tuple[str, float, float]:
    """First harm 1/2 under prompt 0 and 1/4 under prompt 1; then 1 if tactic and prompt are alike, else 0."""
    if len(path) == 4:
        return f"first {path[2]}", (0.5, 0.25)[path[2]], 0.0
    return f"then {path[4] == path[5]}", float(path[4] == path[5]), 0.0


def written(made: CachedTable, folder: Path) -> Path:
    made.write(folder / "table.json")
    return folder / "table.json"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return written(table(pennies), tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return written(table(guess_again, num_exchanges=2, num_seeds=1, benign_prob=0.0), tmp_path)


def test_one_exchange_has_the_value_and_the_mixtures_worked_out_by_hand(one: Path) -> None:
    # Half the harm plus half the lack of help: [[.4 + .15, .1 + .05], [.1 + .15, .3 + .05]] = [[.55, .15], [.25, .35]].
    # Indifference: red plain with (.35 - .25) / .5 = 1/5, blue without prompt (.35 - .15) / .5 = 2/5; value .155 / .5.
    game = cached_dialogue.load(one)
    assert tabular.exact_value(game) == pytest.approx(0.31, abs=1e-9)
    bridge, states = CachedPlay(one, goals=GOALS), information_states(game)
    (wish,), (root,) = states["red"], states["blue"]
    assert bridge.expected_utility({wish: (0.2, 0.8)}, {root: (1.0, 0.0)}) == pytest.approx(0.31)
    assert bridge.expected_utility({wish: (0.2, 0.8)}, {root: (0.0, 1.0)}) == pytest.approx(0.31)
    assert bridge.expected_utility({wish: (1.0, 0.0)}, {root: (0.4, 0.6)}) == pytest.approx(0.31)


def test_blue_that_hears_the_sentence_first_answers_each_as_is_best(one: Path) -> None:
    # Harm at most .2 whatever red says, lack of help .1: (.2 + .1) / 2.
    game = cached_dialogue.load(one, hears=True)
    assert tabular.exact_value(game) == pytest.approx(0.15, abs=1e-9)
    assert len(information_states(game)["blue"]) == 3


def test_the_worst_of_two_exchanges_counts(two: Path) -> None:
    # Pennies over (1, first harm): (1 + 1/2) / 2 after prompt 0, (1 + 1/4) / 2 after prompt 1; blue takes the less.
    assert tabular.exact_value(cached_dialogue.load(two)) == pytest.approx(0.625, abs=1e-9)
    assert tabular.exact_value(cached_dialogue.load(two, hears=True)) == pytest.approx(0.25, abs=1e-9)


@pytest.mark.parametrize("hears", [False, True])
def test_openspiel_can_play_the_game_at_random_and_write_its_states_down(two: Path, hears: bool) -> None:
    pyspiel.random_sim_test(cached_dialogue.load(two, hears=hears), num_sims=5, serialize=True, verbose=False)


@pytest.mark.parametrize("hears", [False, True])
@pytest.mark.parametrize("file", TABLES)
def test_players_remember_all_they_did_and_knew_and_know_no_more(file: str, hears: bool) -> None:
    """States of one information state share the player's history, and differ in nothing that it was told."""
    game = cached_dialogue.load(RESULTS / file, hears=hears)
    held = cached_dialogue.table_of(game)
    histories: dict[str, tuple] = {}
    told: dict[tuple, str] = {}

    def walk(state, own) -> None:
        if state.is_terminal():
            return
        player, name = state.current_player(), None
        if player >= 0:
            name, path = state.information_state_string(player), state.node.path
            assert histories.setdefault(name, (player, own[player])) == (player, own[player])
            ended = path[: len(path) - (len(path) - 1) % 3]
            public = held.said(ended) + ((held.sentence(ended, path[-1]),) if player == 1 and hears else ())
            private = (path[0], path[1::3]) if player == 0 else path[2::3]
            assert told.setdefault((player, private, public), name) == name
        for action in state.legal_actions():
            after = dict(own)
            if player >= 0:
                after[player] = (*own[player], (name, action))
            walk(state.child(action), after)

    walk(game.new_initial_state(), {0: (), 1: ()})
    assert len(told) == len(histories)


def test_blue_knows_no_goal_and_red_no_prompt(one: Path) -> None:
    game = cached_dialogue.load(one)
    spoken = [game.new_initial_state() for _ in range(3)]
    for state, actions in zip(spoken, ((0, 0), (0, 1), (1,)), strict=True):
        for action in actions:
            state.apply_action(action)
        assert state.current_player() == tabular.BLUE
    assert len({state.information_state_string(tabular.BLUE) for state in spoken}) == 1
    assert len({spoken[0].child(prompt).information_state_string(tabular.RED) for prompt in (0, 1)}) == 1
    assert "wish" in spoken[0].information_state_string(tabular.RED)


def test_equal_replies_leave_red_ignorant_of_the_prompt(tmp_path: Path) -> None:
    def silent(path: Choices) -> tuple[str, float, float]:
        return ("same", 0.25, 0.0) if len(path) == 4 else guess_again(path)

    path = written(table(silent, num_exchanges=2, num_seeds=1, benign_prob=0.0), tmp_path)
    states = information_states(cached_dialogue.load(path))
    assert (
        len(states["red"]) == 1 + 2
    )  # after either tactic; after "first 0" and "first 1" there would be twice as many
    assert len(states["blue"]) == 1 + 2 * 2  # it remembers its prompt
    assert tabular.exact_value(cached_dialogue.load(path)) == pytest.approx(0.625, abs=1e-9)


def test_copies_go_on_as_their_original_does(two: Path) -> None:
    game = cached_dialogue.load(two)
    state = game.new_initial_state()
    for action in (0, 1, 0, 0, 1):
        state.apply_action(action)
    twins = [state.clone(), copy.deepcopy(state), pickle.loads(pickle.dumps(state))]  # noqa: S301 - our own bytes
    for twin in twins:
        twin.apply_action(1)
        twin.apply_action(0)
        assert twin.returns() == [1.0, -1.0]
    assert state.current_player() == tabular.BLUE


def test_the_environment_pays_the_payoff_matrix_of_the_game(one: Path) -> None:
    bridge = CachedPlay(one, goals=GOALS)
    states = information_states(bridge.openspiel)
    leaves = bridge.played_paths()
    assert len(leaves) == 2 * 2 * 2 + 2 * 2
    for tactic, prompt in product(range(2), range(2)):
        both = TabularPolicy(bridge.openspiel)
        for name, choice in ((*states["red"], tactic), (*states["blue"], prompt)):
            both.action_probability_array[both.state_lookup[name]] = np.eye(2)[choice]
        expected = policy_value(bridge.openspiel.new_initial_state(), [both, both])[0]
        paid = [leaves[0, tactic, prompt, seed] + leaves[1, 0, prompt, seed] for seed in range(2)]
        assert np.mean(paid) / 2 == pytest.approx(expected, abs=1e-12)
        assert expected == pytest.approx(((0.55, 0.15), (0.25, 0.35))[tactic][prompt], abs=1e-12)


@pytest.mark.parametrize("hears", [False, True])
@pytest.mark.parametrize("file", TABLES)
def test_dialogues_drawn_from_seeds_are_worth_what_openspiel_says(file: str, hears: bool) -> None:
    bridge, rng = CachedPlay(RESULTS / file, hears=hears), np.random.default_rng(5)
    states = information_states(bridge.openspiel)
    policy = TabularPolicy(bridge.openspiel)
    policy.action_probability_array *= rng.random(policy.action_probability_array.shape)
    policy.action_probability_array /= policy.action_probability_array.sum(axis=1, keepdims=True)
    red, blue = (behaviour_of(policy, states[role]) for role in ("red", "blue"))
    exact = policy_value(bridge.openspiel.new_initial_state(), [policy, policy])[0]
    assert bridge.expected_utility(red, blue) == pytest.approx(exact, abs=1e-12)
    pairings = draw_pairings(bridge.game, rng, count=600, red=lambda _: "r", blue=lambda _: "b")
    played = play(bridge.game, {"r": bridge.speaker("r", red), "b": bridge.speaker("b", blue)}, pairings)
    assert abs(utilities(played).mean() - exact) <= 3.5 * utilities(played).std() / np.sqrt(600)


@pytest.mark.parametrize("file", TABLES)
def test_the_environment_pays_what_a_models_table_says_on_every_path(file: str) -> None:
    bridge = CachedPlay(RESULTS / file)
    leaves = bridge.played_paths()
    assert len(leaves) in (640, 504)
    assert max(abs(paid - bridge.table.utility(path)) for path, paid in leaves.items()) <= 1e-9


# By OpenSpiel's program when the tables were built; for one exchange a second program, and a formula, agreed.
@pytest.mark.parametrize(
    ("file", "values"), zip(TABLES, ((0.538850008, 0.457135121), (0.546833197, 0.474934438)), strict=True)
)
def test_a_models_table_has_the_value_that_is_published_and_holds_no_text(
    file: str, values: tuple[float, float]
) -> None:
    for hears, value in zip((False, True), values, strict=True):
        game = cached_dialogue.load(RESULTS / file, hears=hears)
        assert tabular.exact_value(game) == pytest.approx(value, abs=1e-8)
    for row in cached_dialogue.table_of(game).rows.values():
        assert all(re.fullmatch("[0-9a-f]{12}", text) for text in row[:2])
        assert all(0.0 <= number <= 1.0 for number in row[2:])


def test_a_table_comes_back_from_its_file_as_it_was(two: Path) -> None:
    made = table(guess_again, num_exchanges=2, num_seeds=1, benign_prob=0.0)
    assert CachedTable.read(two) == made
    assert CachedTable.read(two).digest == made.digest


def test_a_table_with_a_hole_is_refused() -> None:
    made = table(pennies)
    rows = {path: row for path, row in made.rows.items() if path != (0, 1, 0, 1)}
    with pytest.raises(ConfigError, match=r"1 are missing, the first is \(0, 1, 0, 1\)"):
        replace(made, rows=rows)


def test_a_verdict_that_depends_on_what_nobody_heard_is_refused() -> None:
    def secret(path: Choices) -> tuple[str, float, float]:
        return "same", (0.5, 0.25)[path[2]], 0.0

    with pytest.raises(ConfigError, match="one verdict"):
        table(secret)


def test_a_sentence_that_depends_on_blues_secret_is_refused(two: Path) -> None:
    made = CachedTable.read(two)
    path = (0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ConfigError, match="one sentence"):
        replace(made, rows={**made.rows, path: made.rows[path]._replace(sentence="0" * 12)})


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 0}', '{"schema_version": 1}'])
def test_a_file_that_is_no_table_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(ConfigError, match=r"table\.json"):
        cached_dialogue.load(tmp_path / "table.json")


def test_a_table_that_was_exchanged_under_a_game_is_refused(one: Path) -> None:
    game = cached_dialogue.load(one)
    parameters = {**game.get_parameters(), "digest": "0" * 12}
    with pytest.raises(ConfigError, match="load the game again"):
        cached_dialogue.Game(parameters)


def test_sentences_of_another_game_are_refused(one: Path) -> None:
    bridge = CachedPlay(one, goals=GOALS)
    with pytest.raises(PolicyError, match="hello"):
        bridge.says("b", Observation("blue_0", (("user", "hello"),), 0, 1), 0, 0)
