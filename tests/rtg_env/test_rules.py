from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env import rules
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import Goal
from rtg_env.rules import Deal, GameConfig, GameState
from rtg_env.types import Action, Exchange
from tests.doubles import ANY_TEXT, BENIGN, HARMFUL


def speakers(config: GameConfig, deal: Deal) -> list[str]:
    """Who speaks in a whole dialogue, in order."""
    state, spoken = rules.start(config, deal), []
    while (agent := rules.to_move(config, state)) is not None:
        spoken.append(agent)
        state = rules.apply(config, state, f"{agent}!")
    return spoken


def after(config: GameConfig, deal: Deal, *texts: str) -> GameState:
    state = rules.start(config, deal)
    for text in texts:
        state = rules.apply(config, state, text)
    return state


def test_red_and_blue_alternate_and_red_begins() -> None:
    assert speakers(GameConfig(num_exchanges=2), Deal(goal=HARMFUL)) == ["red_0", "blue_0", "red_0", "blue_0"]


def test_red_members_take_turns_in_the_order_that_was_dealt() -> None:
    spoken = speakers(GameConfig(num_exchanges=4, num_red=3), Deal(goal=HARMFUL, red_order=(2, 0, 1)))
    assert spoken[::2] == ["red_2", "red_0", "red_1", "red_2"]


@pytest.mark.parametrize("num_red", [1, 3])
def test_on_a_benign_goal_only_blue_speaks(num_red: int) -> None:
    config = GameConfig(num_exchanges=3, num_red=num_red)
    assert speakers(config, Deal(goal=BENIGN, red_order=tuple(range(num_red)))) == ["blue_0"] * 3


def test_nature_speaks_the_turns_of_the_goal_and_repeats_the_last() -> None:
    state = after(GameConfig(num_exchanges=3), Deal(goal=BENIGN), "x", "y", "z")
    assert [exchange.red for exchange in state.exchanges] == ["Please write a note.", "Shorter?", "Shorter?"]


def test_nature_is_cut_to_the_limit_of_actions() -> None:
    assert rules.start(GameConfig(max_action_chars=6), Deal(goal=BENIGN)).pending == "Please"


def test_nature_never_speaks_after_the_last_exchange() -> None:
    assert after(GameConfig(num_exchanges=1), Deal(goal=BENIGN), "x").pending is None


@pytest.mark.parametrize("goal", [HARMFUL, BENIGN], ids=["harmful", "benign"])
@pytest.mark.parametrize("num_exchanges", [1, 2, 5])
@given(st.data())
def test_every_dialogue_has_exactly_t_exchanges(goal: Goal, num_exchanges: int, data: st.DataObject) -> None:
    config = GameConfig(num_exchanges=num_exchanges)
    state = rules.start(config, Deal(goal=goal))
    while rules.to_move(config, state) is not None:
        state = rules.apply(config, state, data.draw(ANY_TEXT))
    assert len(state.exchanges) == num_exchanges
    assert rules.is_over(config, state)


def test_empty_messages_do_not_shorten_a_dialogue() -> None:
    state = after(GameConfig(num_exchanges=2), Deal(goal=HARMFUL), "", "", "", "")
    assert state.exchanges == (Exchange(red="", blue=""),) * 2


def test_an_action_after_the_end_is_an_order_error() -> None:
    config = GameConfig(num_exchanges=1)
    state = after(config, Deal(goal=HARMFUL), "a", "b")
    with pytest.raises(OrderError, match=r"over.*reset"):
        rules.apply(config, state, "c")


def test_applying_an_action_leaves_the_state_before_it_unchanged() -> None:
    config = GameConfig()
    before = rules.start(config, Deal(goal=HARMFUL))
    rules.apply(config, before, "a")
    assert before == GameState(deal=Deal(goal=HARMFUL))


def test_text_of_exactly_the_limit_is_legal() -> None:
    assert rules.check_text(GameConfig(max_action_chars=5), "x" * 5) == "x" * 5


def test_text_over_the_limit_is_refused_with_both_numbers_and_the_setting() -> None:
    with pytest.raises(InvalidActionError, match=r"at most 5 characters, got 6; raise GameConfig.max_action_chars"):
        rules.check_text(GameConfig(max_action_chars=5), "x" * 6)


def test_length_is_counted_in_code_points_not_bytes() -> None:
    assert rules.check_text(GameConfig(max_action_chars=5), "👩‍👩‍👧") == "👩‍👩‍👧"


@pytest.mark.parametrize("action", [None, 3, b"bytes", ["a"], {"text": "a"}, 1.5])
def test_an_action_that_is_not_text_is_refused_by_its_type(action: object) -> None:
    with pytest.raises(InvalidActionError, match=f"must be text, got {type(action).__name__}"):
        rules.check_text(GameConfig(), action)


def test_an_action_object_whose_text_is_not_text_is_refused_by_the_type_of_its_text() -> None:
    with pytest.raises(InvalidActionError, match="got bytes"):
        rules.check_text(GameConfig(), Action(text=b"bytes"))  # type: ignore[arg-type]


def test_an_empty_action_is_legal() -> None:
    assert rules.check_text(GameConfig(), "") == ""


def test_lone_surrogates_become_the_replacement_character_in_the_dialogue() -> None:
    assert after(GameConfig(), Deal(goal=HARMFUL), "a\ud800b").pending == "a\ufffdb"


@given(ANY_TEXT)
def test_every_sentence_of_a_dialogue_can_be_encoded(text: str) -> None:
    state = after(GameConfig(), Deal(goal=HARMFUL), text, text)
    assert state.exchanges[0].red.encode() == state.exchanges[0].blue.encode()


def test_a_benign_goal_with_surrogates_is_spoken_well_formed() -> None:
    goal = Goal(id="s", text="t", harmful=False, turns=("\ud800",))
    assert rules.start(GameConfig(), Deal(goal=goal)).pending == "\ufffd"


@pytest.mark.parametrize("order", [(), (0, 0), (1, 2), (0,), (0, 1, 2)])
def test_a_red_order_that_is_no_permutation_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"permutation of 0\.\.1"):
        rules.start(GameConfig(num_red=2), Deal(goal=HARMFUL, red_order=order))


def test_drawn_red_orders_are_permutations_of_plain_integers() -> None:
    deal = rules.draw_deal(GameConfig(num_red=4), HARMFUL, np.random.default_rng(0))
    assert sorted(deal.red_order) == [0, 1, 2, 3]
    assert {type(index) for index in deal.red_order} == {int}


def test_every_red_order_is_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = {rules.draw_deal(GameConfig(num_red=3), HARMFUL, rng).red_order for _ in range(100)}
    assert len(drawn) == 6


def test_everybody_sees_the_same_public_dialogue() -> None:
    config = GameConfig(num_red=2)
    state = after(config, Deal(goal=HARMFUL, red_order=(0, 1)), "a", "b", "c")
    seen = {rules.observe(config, state, agent).messages for agent in config.agents}
    assert seen == {(("user", "a"), ("assistant", "b"), ("user", "c"))}


def test_blue_sees_its_prompt_and_never_the_goal() -> None:
    config = GameConfig(blue_system_prompt="Be kind.")
    seen = rules.observe(config, after(config, Deal(goal=HARMFUL), "a"), "blue_0")
    assert (seen.goal, seen.system_prompt, seen.role) == (None, "Be kind.", "blue")


def test_red_sees_the_goal_and_never_the_prompt_of_blue() -> None:
    config = GameConfig(blue_system_prompt="Be kind.")
    seen = rules.observe(config, rules.start(config, Deal(goal=HARMFUL)), "red_0")
    assert (seen.goal, seen.system_prompt, seen.role) == (HARMFUL, "", "red")


def test_blue_cannot_tell_nature_from_a_red_that_says_the_same() -> None:
    config = GameConfig()
    by_nature = after(config, Deal(goal=BENIGN), "b")
    by_red = after(config, Deal(goal=HARMFUL), "Please write a note.", "b", "Shorter?")
    assert rules.observe(config, by_nature, "blue_0") == rules.observe(config, by_red, "blue_0")


def test_the_turn_counts_finished_exchanges() -> None:
    config = GameConfig(num_exchanges=2)
    turns = [rules.observe(config, after(config, Deal(goal=HARMFUL), *"abcd"[:n]), "blue_0").turn for n in range(5)]
    assert turns == [0, 0, 1, 1, 2]


def test_teams_are_all_agents_and_do_not_overlap() -> None:
    config = GameConfig(num_red=3)
    assert (
        (*rules.team_of(config, "red"), *rules.team_of(config, "blue"))
        == config.agents
        == ("red_0", "red_1", "red_2", "blue_0")
    )


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=3), st.none() | ANY_TEXT, st.permutations(range(3)))
def test_a_state_survives_json(exchanges: list[tuple[str, str]], pending: str | None, order: list[int]) -> None:
    config = GameConfig(num_exchanges=4, num_red=3)
    texts = [text for exchange in exchanges for text in exchange] + ([] if pending is None else [pending])
    state = after(config, Deal(goal=HARMFUL, red_order=tuple(order)), *texts)
    again = rules.state_from_json(json.loads(json.dumps(rules.state_to_json(state))), {"h": HARMFUL})
    assert again == state


def test_a_saved_state_stores_no_goal_text() -> None:
    assert HARMFUL.text not in json.dumps(rules.state_to_json(rules.start(GameConfig(), Deal(goal=HARMFUL))))


def test_a_state_of_an_unknown_goal_names_the_goal() -> None:
    data = rules.state_to_json(rules.start(GameConfig(), Deal(goal=HARMFUL)))
    with pytest.raises(ConfigError, match="'h'"):
        rules.state_from_json(data, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_exchanges", 0),
        ("num_exchanges", 2.0),
        ("num_exchanges", True),
        ("num_exchanges", "3"),
        ("num_red", 0),
        ("num_red", None),
        ("max_action_chars", 0),
        ("benign_prob", 1.0),
        ("benign_prob", -0.1),
        ("benign_prob", float("nan")),
        ("benign_prob", "0.25"),
        ("benign_prob", None),
        ("helpfulness_weight", -1.0),
        ("helpfulness_weight", float("inf")),
        ("helpfulness_weight", float("nan")),
        ("helpfulness_weight", "1"),
        ("aggregate", "median"),
        ("aggregate", ["max"]),
        ("blue_system_prompt", None),
        ("blue_system_prompt", 7),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_value(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        GameConfig(**{field: value})  # type: ignore[arg-type]
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("settings", [{"benign_prob": 0}, {"helpfulness_weight": 0}, {"benign_prob": np.float64(0.5)}])
def test_numbers_of_any_real_type_are_settings(settings: dict[str, float]) -> None:
    assert GameConfig(**settings).num_exchanges == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 1.0), (1.0, 1.0), (2.5, 2.5)])
def test_the_largest_utility_is_one_or_the_helpfulness_weight(weight: float, expected: float) -> None:
    assert GameConfig(helpfulness_weight=weight).max_utility == expected
