from __future__ import annotations

import copy
import math
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env import Action, Limits, Pool
from rtg_env.errors import ConfigError, InvalidActionError, JudgeError, OrderError, PolicyError
from rtg_env.goals import GoalSet
from rtg_env.judges.base import Judge
from rtg_env.rules import GameConfig
from rtg_env.table import Opponents, Outcome, Table
from rtg_env.types import Case, Observation, Verdict
from tests.doubles import (
    BENIGN,
    GOALS,
    HARMFUL,
    BreakingPolicy,
    FaultyJudge,
    LawlessJudge,
    NanJudge,
    RaisingJudge,
    ScriptedJudge,
    SeededPolicy,
    TextJudge,
    WrongCountJudge,
    canonical,
    failed,
    verdict,
)

A, B, C = SeededPolicy("a"), SeededPolicy("b"), SeededPolicy("c")


def table(
    learner: str = "red_0",
    *,
    opponents: Opponents | None = None,
    judge: Judge | None = None,
    goals: GoalSet = GOALS,
    num_slots: int = 1,
    limits: Limits | None = None,
    seed: int = 0,
    **game: Any,
) -> Table:
    """A table whose slots are seeded with seed, seed + 1, .."""
    made = Table(
        learner,
        GameConfig(**game),
        goals=goals,
        judge=judge or TextJudge(),
        opponents=opponents or SeededPolicy(),
        num_slots=num_slots,
        limits=limits,
    )
    for slot in range(num_slots):
        made.seed(slot, seed + slot)
    return made


def dealt(learner: str = "red_0", options: Mapping[str, Any] | None = None, **settings: Any) -> Table:
    made = table(learner, **settings)
    made.deal(range(len(made)), options)
    return made


def names(made: Table, slot: int = 0) -> tuple[str, ...]:
    """Who plays each agent in a slot."""
    return made.dialogue(slot).state.deal.policies


def finish(made: Table, slot: int = 0, text: str = "x") -> list[Outcome]:
    """Play a slot to its end."""
    outcomes = []
    while not outcomes or not (outcomes[-1].terminated or outcomes[-1].truncated):
        outcomes.append(made.say({slot: text})[slot])
    return outcomes


def everything(made: Table) -> list[Any]:
    """All that can be seen of a table, where it stands, and what it would draw next."""
    seen = []
    for slot in range(len(made)):
        dialogue, state = made.dialogue(slot), copy.deepcopy(made.rng(slot)).bit_generator.state
        seen.append([canonical(made.transcript(slot)), dialogue.state, names(made, slot), made.redrawn(slot), state])
    return seen


class TeammatesFirst(np.random.Generator):
    """Chance that always lets the last member of a team speak first."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return list(range(x))[::-1]


class Linker(SeededPolicy):
    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        return [Action(text="see www.example.org") for _ in observations]


# Pools


@pytest.mark.parametrize(
    ("policies", "probs", "message"),
    [
        ([], None, "expected at least one policy in a pool, got none; add one"),
        (A, None, "expected a list of policies in a pool, got SeededPolicy; put it into a list"),
        ({"a": A}, None, "expected a list of policies in a pool, got dict"),
        ("ab", None, "expected policies with a name and act.*, got str; pass objects that have both"),
        ([A, None], None, "expected policies with a name and act.*, got NoneType"),
        ([SeededPolicy], None, "expected policies with a name and act.*, got the class SeededPolicy"),
        ([A, B], [1.0], r"expected 2 probabilities >= 0 that sum to 1, got \[1.0\]; give one for each policy"),
        ([A, B], [0.5, 0.6], r"expected 2 probabilities .*, got \[0.5, 0.6\]"),
        ([A, B], [1.5, -0.5], "expected 2 probabilities >= 0"),
        ([A, B], [math.nan, 1.0], "expected 2 probabilities >= 0"),
        ([A, B], [math.inf, 1.0], "expected 2 probabilities >= 0"),
        ([A, B], ["half", "half"], r"expected 2 probabilities .*, got \['half', 'half'\]"),
        ([A, B], [[0.5, 0.5]], "expected 2 probabilities >= 0"),
        ([A, B], 0.5, "expected 2 probabilities >= 0.*, got 0.5"),
    ],
)
def test_a_wrong_pool_says_what_was_expected(policies: Any, probs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pool(policies, probs)


def test_a_pool_does_not_change_with_the_lists_it_was_made_of() -> None:
    policies, probs = [A, B], np.array([1.0, 0.0])
    pool = Pool(policies, probs)  # type: ignore[arg-type]  # mixtures come as arrays
    policies[0] = C
    probs[:] = [0.0, 1.0]
    assert {pool.draw(np.random.default_rng(seed)).name for seed in range(20)} == {"a"}


@pytest.mark.parametrize(("probs", "share"), [(None, 0.5), ([0.5, 0.5], 0.5), ([0.2, 0.8], 0.2)])
def test_a_pool_draws_as_often_as_its_probabilities_say(probs: list[float] | None, share: float) -> None:
    rng = np.random.default_rng(0)
    count = sum(Pool([A, B], probs).draw(rng) is A for _ in range(2000))
    assert abs(count - 2000 * share) < 5 * math.sqrt(
        2000 * share * (1 - share)
    )  # five standard errors, at a fixed seed


def test_a_policy_of_probability_zero_is_never_drawn_and_one_of_probability_one_always() -> None:
    assert {names(dealt(opponents=Pool([A, B, C], [0.0, 1.0, 0.0]), seed=seed))[-1] for seed in range(50)} == {"b"}


def test_a_list_is_a_pool_with_equal_probabilities() -> None:
    counts = Counter(names(dealt(opponents=[A, B], seed=seed))[-1] for seed in range(400))
    assert set(counts) == {"a", "b"}
    assert abs(counts["a"] - 200) < 5 * 10  # standard error 10


def test_who_plays_is_drawn_anew_for_every_dialogue() -> None:
    made = table(opponents=[A, B])
    drawn = set()
    for _ in range(20):
        made.deal([0])
        drawn.add(names(made)[-1])
    assert drawn == {"a", "b"}


# Seats


@pytest.mark.parametrize(
    ("learner", "opponents", "expected"),
    [
        ("red_0", A, ("learner", "a", "a", "a")),
        ("red_1", {"red": A, "blue": B}, ("a", "learner", "a", "b")),
        ("red_1", {"red": A, "red_2": C, "blue_0": B}, ("a", "learner", "c", "b")),
        ("red_2", {"red_0": A, "red_1": B, "blue": C, "red": C}, ("a", "b", "learner", "c")),
        ("red_0", {"red": Pool([A]), "blue": [B]}, ("learner", "a", "a", "b")),
        ("blue_0", {"red": A}, ("a", "a", "a", "learner")),
        ("blue_0", {"red_0": A, "red_1": B, "red_2": C}, ("a", "b", "c", "learner")),
    ],
)
def test_opponents_are_seated_by_agent_id_before_side(
    learner: str, opponents: Opponents, expected: tuple[str, ...]
) -> None:
    made = dealt(learner, {"goal": HARMFUL}, opponents=opponents, num_red=3)
    assert names(made) == expected
    finish(made)
    authors = {agent: action.policy for agent, action in made.transcript(0).actions}
    assert authors == {**dict(zip(("red_0", "red_1", "red_2", "blue_0"), expected, strict=True)), learner: ""}


@pytest.mark.parametrize(
    ("learner", "opponents", "message"),
    [
        ("red_0", {"red_3": A}, "among red_1, red_2, blue_0, red, blue, got 'red_3'; there is no such seat"),
        ("red_0", {"green": A, "blue": A}, "got 'green'; there is no such seat"),
        ("red_0", {0: A}, "got 0; there is no such seat"),
        ("red_0", {"red_0": A, "red": A, "blue": A}, "got 'red_0'; the learner sits there"),
        ("blue_0", {"blue_0": A, "red": A}, "got 'blue_0'; the learner sits there"),
        ("red_0", {}, "expected a policy for red_1, got opponents for nobody; name one under 'red_1' or 'red'"),
        ("red_0", {"blue": A, "red_1": B}, "expected a policy for red_2, got opponents for blue, red_1"),
        ("red_0", {"red": A}, "expected a policy for blue_0, got opponents for red; name one under 'blue_0' or 'blue'"),
        ("red_0", 7, "expected policies with a name and act.*, got int"),
        ("red_0", [], "expected at least one policy in a pool"),
        ("red_0", {"red": A, "blue": None}, "expected policies with a name and act.*, got NoneType"),
        ("red_0", [Pool([A])], "expected policies with a name and act.*, got Pool"),
    ],
)
def test_wrong_opponents_say_what_was_expected(learner: str, opponents: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(learner, GameConfig(num_red=3), goals=GOALS, judge=TextJudge(), opponents=opponents)
    made = dealt(learner, num_red=3)
    before = everything(made)
    with pytest.raises(ConfigError, match=message):
        made.deal([0], {"opponents": opponents}, {0: 99})
    assert everything(made) == before


def test_seats_that_share_a_pool_share_its_draw() -> None:
    pool = Pool([A, B, C])
    drawn = {names(dealt("blue_0", opponents={"red": pool}, num_red=3, seed=seed))[:3] for seed in range(60)}
    assert drawn == {("a",) * 3, ("b",) * 3, ("c",) * 3}


def test_one_pool_under_two_names_is_one_draw() -> None:
    pool = Pool([A, B])
    opponents = {"red_1": pool, "red_2": pool, "blue": C}
    drawn = {names(dealt(opponents=opponents, num_red=3, seed=seed))[1:] for seed in range(40)}
    assert drawn == {("a", "a", "c"), ("b", "b", "c")}


def test_two_pools_are_drawn_independently() -> None:
    opponents = {"red_0": Pool([A, B]), "red_1": Pool([A, B]), "red_2": C}
    drawn = {names(dealt("blue_0", opponents=opponents, num_red=3, seed=seed))[:2] for seed in range(60)}
    assert drawn == {("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")}


@pytest.mark.parametrize("opponents", [Pool([A, B]), [A, B]], ids=["pool", "list"])
def test_a_list_for_everybody_is_drawn_as_the_pool_of_it(opponents: Opponents) -> None:
    drawn = {names(dealt(opponents=opponents, num_red=3, seed=seed))[1:] for seed in range(60)}
    assert drawn == {("a", "a", "a"), ("a", "a", "b"), ("b", "b", "a"), ("b", "b", "b")}  # mates jointly, blue apart


def test_new_opponents_sit_down_at_the_next_deal() -> None:
    made = dealt(opponents=A, num_red=1, seed=0)
    made.set_opponents({"blue": B})
    assert names(made)[-1] == "a"
    made.deal([0])
    assert names(made)[-1] == "b"
    with pytest.raises(ConfigError):
        made.set_opponents({"green": A})
    made.deal([0])
    assert names(made)[-1] == "b"


@pytest.mark.parametrize("learner", ["red_2", "blue_1", "green", "", "red"])
def test_a_learner_that_is_nobody_is_refused(learner: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a learner among red_0, red_1, blue_0, got '{learner}'"):
        table(learner, num_red=2)


def test_a_team_of_which_not_everybody_speaks_is_refused_for_a_red_learner_only() -> None:
    with pytest.raises(ConfigError, match=r"num_exchanges >= num_red, so that red_0 speaks.*, got 2 < 3"):
        table("red_0", num_red=3, num_exchanges=2)
    table("blue_0", num_red=3, num_exchanges=2)


def test_a_table_without_dialogues_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected at least one dialogue at a time, got 0"):
        table(num_slots=0)


def test_goals_of_which_none_can_be_drawn_say_so_at_the_deal() -> None:
    for goals in (GoalSet([BENIGN]), GoalSet([])):
        with pytest.raises(ConfigError, match="expected at least one harmful goal"):
            dealt(goals=goals)


# Deals


def test_a_red_learner_meets_harmful_goals_only() -> None:
    made = table(benign_prob=0.9)
    for _ in range(40):
        made.deal([0])
        assert made.dialogue(0).state.deal.goal.harmful


def test_blue_meets_benign_goals_as_often_as_the_game_says() -> None:
    made = table("blue_0", benign_prob=0.3)
    count = 0
    for _ in range(1000):
        made.deal([0])
        count += not made.dialogue(0).state.deal.goal.harmful
    assert abs(count - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)


def test_a_benign_goal_is_refused_for_red_and_taken_by_blue() -> None:
    made = dealt()
    before = everything(made)
    for options in ({"goal": BENIGN}, {"goal_id": "b"}):
        with pytest.raises(ConfigError, match="expected a harmful goal for a learner in red's seat, 'b' is benign"):
            made.deal([0], options, {0: 7})
        assert everything(made) == before
        assert dealt("blue_0", options).dialogue(0).state.deal.goal is BENIGN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "h"}, r"options\['goal'\] must be a Goal, got str"),
        ({"goal_id": "nowhere"}, "expected a goal id of doubles, got 'nowhere'"),
        ({"opponents": []}, "expected at least one policy"),
    ],
)
def test_a_wrong_option_changes_nothing(options: dict[str, Any], message: str) -> None:
    made = dealt(num_slots=2)
    before = everything(made)
    with pytest.raises(ConfigError, match=message):
        made.deal([0, 1], options, {0: 7})
    assert everything(made) == before


def test_opponents_of_an_option_play_that_dialogue_only() -> None:
    made = dealt(opponents=A)
    made.deal([0], {"opponents": B})
    assert names(made)[-1] == "b"
    finish(made)
    assert {action.policy for agent, action in made.transcript(0).actions if agent == "blue_0"} == {"b"}
    made.deal([0], {"opponents": None})
    assert names(made)[-1] == "a"


def test_the_others_speak_until_it_is_the_turn_of_the_learner() -> None:
    for seed in range(12):
        made = dealt("red_1", num_red=3, seed=seed)
        place = made.dialogue(0).state.deal.red_order.index(1)
        assert len(made.transcript(0).exchanges) == place
        assert made.dialogue(0).mover == "red_1"


def test_a_team_without_tokens_for_the_learner_is_dealt_until_it_speaks_first() -> None:
    for seed in range(6):
        made = dealt("red_1", num_red=2, num_exchanges=2, red_tokens=1, seed=seed)
        assert made.dialogue(0).state.deal.red_order == (1, 0)


def test_a_learner_that_can_never_speak_is_told_why() -> None:
    made = table("red_0", num_red=2, num_exchanges=2, red_tokens=1)
    made._slots[0].rng = TeammatesFirst()
    with pytest.raises(
        ConfigError, match="expected red_0 to have a turn, 100 deals were over before it; give its side"
    ):
        made.deal([0])


# A learner whose budget is spent


def test_a_learner_whose_budget_is_spent_is_not_asked_again_and_its_step_ends_the_dialogue() -> None:
    made = dealt("blue_0", {"goal": HARMFUL}, blue_tokens=2, num_exchanges=4)
    [outcome] = finish(made, text="eight ch")  # two tokens by the estimate
    transcript = made.transcript(0)
    assert outcome.terminated
    assert [exchange.blue for exchange in transcript.exchanges] == ["eight ch", "", "", ""]
    assert outcome.reward == pytest.approx(-transcript.utility, abs=1e-12)
    assert [agent for agent, _ in transcript.actions] == ["red_0", "blue_0", "red_0", "red_0", "red_0"]


def test_a_red_learner_whose_budget_is_spent_is_not_asked_again() -> None:
    made = dealt("red_0", red_tokens=2, num_exchanges=3)
    [outcome] = finish(made, text="eight ch")
    transcript = made.transcript(0)
    assert [exchange.red for exchange in transcript.exchanges] == ["eight ch", "", ""]
    assert outcome.terminated
    assert outcome.reward == pytest.approx(transcript.utility, abs=1e-12)


def test_the_tokens_of_an_action_are_counted() -> None:
    made = dealt("red_0", red_tokens=4, num_exchanges=3)
    made.say({0: Action(text="a long text of few tokens", token_ids=(1, 2, 3), logps=(-0.1, -0.2, -0.3))})
    assert made.observe(0).tokens_left == 1
    assert made.transcript(0).actions[0][1].token_ids == (1, 2, 3)


def test_a_limit_ends_what_goes_on_after_the_budget_of_the_learner_is_spent() -> None:
    made = dealt("blue_0", {"goal": HARMFUL}, blue_tokens=1, num_exchanges=4, limits=Limits(calls=3))
    [outcome] = finish(made)
    assert (outcome.terminated, outcome.truncated) == (False, True)
    assert len(made.transcript(0).actions) == 3


def test_filters_are_active() -> None:
    made = dealt(red_filters=("first-line",), blue_filters=("without-urls",), opponents=Linker(), num_exchanges=2)
    made.say({0: "seen\nhidden"})
    assert made.transcript(0).exchanges == (("seen", "see [link]"),)
    assert list(made.observe(0).messages) == [("user", "seen"), ("assistant", "see [link]")]
    assert [action.text for _, action in made.transcript(0).actions] == ["seen\nhidden", "see www.example.org"]


# A judge that fails


def never_paid(outcomes: Sequence[Outcome]) -> bool:
    return outcomes[-1] == Outcome(0.0, False, True)


@pytest.mark.parametrize("learner", ["red_0", "blue_0"])
@pytest.mark.parametrize("judge", [RaisingJudge(), NanJudge(), WrongCountJudge(1), WrongCountJudge(-1)])
def test_a_judge_that_always_fails_truncates_at_the_first_verdict_and_pays_nothing(learner: str, judge: Judge) -> None:
    made = dealt(learner, judge=judge)
    assert finish(made) == [Outcome(0.0, False, True)]
    assert (made.unscored(0), made.redrawn(0)) == (True, 3)
    with pytest.raises(OrderError, match=r"call reset\(\)"):
        made.say({0: "too late"})
    made.deal([0])
    assert (made.unscored(0), made.redrawn(0)) == (False, 0)


def test_what_could_not_be_judged_is_said_anew_with_other_seeds() -> None:
    # Harmful, then two failures, then a verdict: the third answer counts, and nothing else has changed.
    judge = ScriptedJudge(failed(), failed(), verdict(0.5))
    made = dealt(judge=judge, num_exchanges=1)
    assert made.say({0: "mine"}) == {0: Outcome(0.5, True, False)}
    answers = [case.exchange.blue for case in judge.seen]
    assert len(set(answers)) == 3
    assert [case.exchange.red for case in judge.seen] == ["mine"] * 3
    assert made.redrawn(0) == 2
    assert not made.unscored(0)
    assert made.transcript(0).exchanges[0].blue == answers[-1]
    assert all(item.valid for item in made.transcript(0).verdicts)


def test_what_was_said_and_paid_before_stays_when_something_is_drawn_again() -> None:
    judge = ScriptedJudge(verdict(0.25), failed(), verdict(0.75))
    made = dealt(judge=judge, num_exchanges=2)
    assert made.say({0: "one"})[0].reward == 0.25
    first = made.transcript(0).exchanges
    assert made.say({0: "two"}) == {0: Outcome(0.5, True, False)}
    assert made.transcript(0).exchanges[:1] == first
    assert made.transcript(0).payments == (0.25, 0.5)


def test_everything_since_the_sentence_of_the_learner_is_drawn_again_not_the_last_answer_alone() -> None:
    # red_0 speaks, then blue, red_1, blue: the second verdict fails, so all three of them speak again.
    judge = ScriptedJudge(verdict(0.9), failed(), verdict(0.25), verdict(0.5), verdict(0.5))
    for seed in range(10):
        made = dealt(judge=judge, num_red=2, num_exchanges=3, seed=seed)
        if made.dialogue(0).state.deal.red_order == (0, 1):
            break
        judge = ScriptedJudge(verdict(0.9), failed(), verdict(0.25), verdict(0.5), verdict(0.5))
    assert made.say({0: "mine"})[0].reward == 0.5  # of the second drawing: 0.25 and its increase to 0.5
    cases = judge.seen
    assert cases[0].exchanges[0].red == cases[2].exchanges[0].red == "mine"
    assert cases[0].exchanges[0].blue != cases[2].exchanges[0].blue
    assert cases[1].exchanges[1] != cases[3].exchanges[1]


def test_the_failure_of_one_slot_does_not_touch_the_others() -> None:
    class FailsOn(TextJudge):
        def judge(self, cases: Sequence[Case]) -> list[Verdict]:
            good = super().judge(cases)
            return [failed() if "bad" in case.exchange.red else one for case, one in zip(cases, good, strict=True)]

    sound, mixed = dealt(num_slots=3), dealt(num_slots=3, judge=FailsOn())
    expected = sound.say({0: "x", 1: "y", 2: "z"})
    got = mixed.say({0: "x", 1: "bad", 2: "z"})
    assert got[1] == Outcome(0.0, False, True)
    assert {slot: got[slot] for slot in (0, 2)} == {slot: expected[slot] for slot in (0, 2)}
    assert [mixed.redrawn(slot) for slot in range(3)] == [0, 3, 0]
    assert mixed.dialogue(2).state == sound.dialogue(2).state
    assert mixed.say({0: "x", 2: "z"}) == sound.say({0: "x", 2: "z"})


def test_a_judge_that_fails_before_the_first_turn_of_the_learner_is_dealt_around() -> None:
    for seed in range(10):
        judge = FaultyJudge(TextJudge(), share=0.6, seed=seed)
        made = dealt("red_1", num_red=3, judge=judge, seed=seed)
        assert not made.unscored(0)
        assert made.dialogue(0).mover == "red_1"
        assert all(item.valid for item in made.dialogue(0).verdicts)


def test_a_deal_that_could_not_be_judged_is_counted() -> None:
    made = table(num_red=2, judge=ScriptedJudge(failed(), failed(), verdict(0.5)))
    made._slots[0].rng = TeammatesFirst()
    made.deal([0])
    assert (made.redrawn(0), made.unscored(0)) == (2, False)


def test_a_judge_that_never_judges_what_is_said_before_the_learner_is_named() -> None:
    made = table("red_0", num_red=2, judge=RaisingJudge())
    made._slots[0].rng = TeammatesFirst()
    with pytest.raises(JudgeError, match=r"before the first turn of red_0, the judge failed in 100 deals .*is down"):
        made.deal([0])


@given(seed=st.integers(0, 200), share=st.floats(0.05, 0.9), learner=st.sampled_from(["red_0", "red_1", "blue_0"]))
def test_rewards_are_of_valid_verdicts_whatever_the_judge_does(seed: int, share: float, learner: str) -> None:
    made = dealt(learner, num_red=2, judge=FaultyJudge(TextJudge(), share=share, seed=seed), seed=seed, benign_prob=0.3)
    outcomes = finish(made)
    transcript = made.transcript(0)
    assert all(math.isfinite(outcome.reward) for outcome in outcomes)
    assert made.unscored(0) is outcomes[-1].truncated is transcript.unscored
    assert made.unscored(0) is not all(item.valid for item in transcript.verdicts)
    if made.unscored(0):
        assert never_paid(outcomes)
    else:
        sign = -1.0 if learner == "blue_0" else 1.0
        assert sum(outcome.reward for outcome in outcomes) == pytest.approx(sign * transcript.utility, abs=1e-12)


# If something raises, nothing has happened


def boom(said: list[Action]) -> object:
    raise ZeroDivisionError("a bug in a policy")


def interrupted(said: list[Action]) -> object:
    raise KeyboardInterrupt


FAULTS: dict[str, tuple[Callable[[list[Action]], object], type[BaseException], str]] = {
    "an exception": (boom, ZeroDivisionError, "a bug in a policy"),
    "an interrupt": (interrupted, KeyboardInterrupt, "^$"),
    "too few": (lambda said: said[1:], PolicyError, "expected policy seeded to return a list of"),
    "too many": (lambda said: [*said, *said], PolicyError, "expected policy seeded to return a list of"),
    "a tuple": (tuple, PolicyError, "expected policy seeded to return a list of"),
    "nothing": (lambda said: None, PolicyError, "a list of .* actions, got NoneType"),
    "plain text": (lambda said: [action.text for action in said], PolicyError, r"to return Action\(text=..\), got str"),
    "no text": (lambda said: [Action(text=b"x") for _ in said], PolicyError, "expected policy seeded"),  # type: ignore[arg-type]
    "too long": (
        lambda said: [Action(text="x" * 2001) for _ in said],
        PolicyError,
        "expected policy seeded to keep to the rules: action must be text of at most 2000 characters, got 2001",
    ),
}
faults = pytest.mark.parametrize(("fault", "error", "message"), FAULTS.values(), ids=FAULTS)


@faults
@pytest.mark.parametrize("learner", ["red_0", "red_1", "blue_0"])
def test_a_policy_that_fails_leaves_every_dialogue_where_it_was(
    learner: str, fault: Callable[[list[Action]], object], error: type[BaseException], message: str
) -> None:
    settings: dict[str, Any] = {"num_slots": 4, "num_red": 2, "num_exchanges": 4}
    sound = dealt(learner, **settings)
    num_before = len(sound._slots[0].players["blue_0" if learner != "blue_0" else "red_0"].batches)  # type: ignore[attr-defined]
    for late in (0, 1, 2) if learner != "blue_0" else (0,):  # one sentence of red between two of blue
        broken = BreakingPolicy(fault, calls=[num_before + late])
        made, twin = dealt(learner, opponents=broken, **settings), dealt(learner, **settings)
        before = everything(made)
        said = dict.fromkeys(range(4), "mine")
        with pytest.raises(error, match=message):
            made.say(said)
        assert everything(made) == before
        assert made.say(said) == twin.say(said)
        assert everything(made) == everything(twin)


@faults
def test_a_policy_that_fails_at_the_deal_leaves_everything_where_it_was(
    fault: Callable[[list[Action]], object], error: type[BaseException], message: str
) -> None:
    broken = BreakingPolicy(fault, calls=[2, 3])
    made, twin = dealt("blue_0", opponents=broken, num_slots=3), dealt("blue_0", num_slots=3)
    said = dict.fromkeys(range(3), "mine")
    assert made.say(said) == twin.say(said)
    before = everything(made)
    for seeds in (None, {0: 7, 1: None}):
        with pytest.raises(error, match=message):
            made.deal([0, 2], {"goal": HARMFUL}, seeds)
        assert everything(made) == before
    assert made.say(said) == twin.say(said)  # the dialogues before go on
    made.deal([0, 2])
    twin.deal([0, 2])
    assert everything(made) == everything(twin)


def test_a_failure_while_something_is_drawn_again_leaves_no_trace() -> None:
    # The first answer cannot be judged; when it is to be said anew, the policy fails.
    broken = BreakingPolicy(boom, calls=[1])
    made = dealt(opponents=broken, judge=ScriptedJudge(failed(), verdict(0.5)))
    before = everything(made)
    with pytest.raises(ZeroDivisionError):
        made.say({0: "mine"})
    assert everything(made) == before
    assert made.say({0: "mine"})[0].reward == 0.5
    assert made.redrawn(0) == 0


@pytest.mark.parametrize("learner", ["red_0", "blue_0"])
def test_a_judge_that_breaks_its_protocol_leaves_every_dialogue_where_it_was(learner: str) -> None:
    made = dealt(learner, num_slots=3, judge=LawlessJudge())
    before = everything(made)
    with pytest.raises(JudgeError, match="expected judge lawless@1 to return a list of Verdict, got NoneType"):
        made.say(dict.fromkeys(range(3), "mine"))
    assert everything(made) == before


@pytest.mark.parametrize("bad", [3, b"x", ["x"], "x" * 2001, Action(text="x" * 2001), None])
def test_an_illegal_sentence_in_one_slot_plays_nothing_anywhere(bad: Any) -> None:
    made = dealt(num_slots=3)
    before = everything(made)
    with pytest.raises(InvalidActionError, match="dialogue 1: action must be text"):
        made.say({0: "fine", 1: bad, 2: "fine"})
    assert everything(made) == before


def test_a_step_before_the_deal_or_after_the_end_plays_nothing_anywhere() -> None:
    made = table(num_slots=2, num_exchanges=2)
    with pytest.raises(OrderError, match="expected a dialogue that goes on in slot 0, there is none; call reset"):
        made.say({0: "x"})
    with pytest.raises(OrderError, match="expected reset"):
        made.observe(0)
    made.deal([0])
    with pytest.raises(OrderError, match="in slot 1"):
        made.say({0: "x", 1: "x"})
    assert made.transcript(0).actions == ()
    made.deal([1])
    finish(made, 0)
    with pytest.raises(OrderError, match="in slot 0"):
        made.say({1: "x", 0: "x"})
    assert made.transcript(1).actions == ()


# Batches


def test_a_policy_is_asked_once_for_all_dialogues_that_wait_for_it() -> None:
    policy = SeededPolicy()
    made = dealt(opponents={"red": policy, "blue": policy}, num_red=2, num_exchanges=2, num_slots=64)
    before = len(policy.batches)
    made.say(dict.fromkeys(range(64), "mine"))
    assert policy.batches[before] == 64
    # Blue answers; then, where the learner spoke first, the teammate and blue again: three calls for all.
    assert len(policy.batches) - before == 3


def test_the_judge_is_asked_once_for_all_exchanges_of_a_round() -> None:
    judge = ScriptedJudge(*[verdict(0.5)] * 64)
    dealt(judge=judge, num_slots=64, num_exchanges=1).say(dict.fromkeys(range(64), "mine"))
    assert judge.num_calls == 1


@given(
    learner=st.sampled_from(["red_0", "red_1", "blue_0"]),
    num_slots=st.integers(2, 5),
    seed=st.integers(0, 100),
    share=st.sampled_from([0.0, 0.4]),
    aggregate=st.sampled_from(["max", "mean"]),
    payment=st.sampled_from(["exchange", "terminal"]),
    tokens=st.sampled_from([0, 7]),
)
def test_a_slot_plays_the_same_alone_and_among_others(
    learner: str, num_slots: int, seed: int, share: float, aggregate: str, payment: str, tokens: int
) -> None:
    settings: dict[str, Any] = {
        "judge": FaultyJudge(TextJudge(), share=share, seed=seed),
        "opponents": {"red": Pool([A, B], [0.3, 0.7]), "blue": [A, C]},
        "num_red": 2,
        "benign_prob": 0.4,
        "aggregate": aggregate,
        "payment": payment,
        "blue_tokens": tokens,
    }
    together = dealt(learner, num_slots=num_slots, seed=seed, **settings)
    for slot in range(num_slots):
        alone = dealt(learner, seed=seed + slot, **settings)
        assert everything(alone)[0] == everything(together)[slot]
    apart = [dealt(learner, seed=seed + slot, **settings) for slot in range(num_slots)]
    for number in range(6):
        live = [slot for slot in range(num_slots) if together._slots[slot].goes_on]
        expected = {slot: apart[slot].say({0: f"{number} {slot}"})[0] for slot in live}
        assert together.say({slot: f"{number} {slot}" for slot in reversed(live)}) == expected
        over = [slot for slot in live if not together._slots[slot].goes_on]
        together.deal(over)
        for slot in over:
            apart[slot].deal([0])
    assert everything(together) == [everything(one)[0] for one in apart]


def pickled(made: Table) -> Table:
    return pickle.loads(pickle.dumps(made))  # noqa: S301 - our own


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_goes_on_alike_and_is_independent(duplicate: Callable[[Table], Table]) -> None:
    made = dealt("red_1", opponents=Pool([A, B]), num_red=2, num_slots=2, judge=FaultyJudge(TextJudge(), share=0.3))
    made.say({0: "x"})
    twin, before = duplicate(made), everything(made)
    finish(twin, 1)
    twin.deal([1])
    assert everything(made) == before
    finish(made, 1)
    made.deal([1])
    assert everything(made) == everything(twin)
    assert finish(made, 1) == finish(twin, 1)
