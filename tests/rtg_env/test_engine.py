from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtg_env import seeding
from rtg_env.dialogue import action_from_json, verdict_from_json, verdict_to_json
from rtg_env.engine import DialogueBatch, replay, rescore
from rtg_env.errors import ConfigError, InvalidActionError, JudgeError, OrderError
from rtg_env.goals import Goal, GoalSet, LabelledReply
from rtg_env.rules import Deal, GameConfig
from rtg_env.seeding import turn_seed
from rtg_env.types import Action, Case, Exchange, FinishReason, Observation, Verdict
from tests.doubles import (
    ANY_TEXT,
    BENIGN,
    GOALS,
    HARMFUL,
    FaultyJudge,
    LawlessJudge,
    NanJudge,
    RaisingJudge,
    ScriptedJudge,
    TextJudge,
    WrongCountJudge,
    canonical,
    failed,
    play,
    verdict,
)

ON_HARMFUL, ON_BENIGN = Deal(goal=HARMFUL), Deal(goal=BENIGN)
TWO = GameConfig(num_exchanges=2)


def echo(observation: Observation) -> str:
    return f"{observation.agent_id}:{observation.turn}"


def strict_json(thing: object) -> object:
    """Through text and back, as a file would; NaN and Infinity are no JSON."""
    return json.loads(json.dumps(thing, allow_nan=False))


# Turns and what is judged


def test_each_dialogue_is_asked_for_at_most_one_sentence_at_a_time() -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL, ON_BENIGN, ON_HARMFUL], TextJudge())
    assert [(turn.dialogue, turn.observation.agent_id) for turn in batch.pending()] == [
        (0, "red_0"),
        (1, "blue_0"),
        (2, "red_0"),
    ]


def test_a_turn_says_who_plays_it_and_with_which_seed() -> None:
    config = GameConfig(num_exchanges=2, num_red=2)
    deal = Deal(goal=HARMFUL, red_order=(1, 0), policies=("red_03@v1", "red_05@v1", "blue_02@v1"), seed=7)
    batch = DialogueBatch(config, [deal], TextJudge())
    asked = []
    while turns := batch.pending():
        asked += [(turn.agent_id, turn.policy, turn.seed) for turn in turns]
        batch.submit({turn.dialogue: "x" for turn in turns})
    assert asked == [
        ("red_1", "red_05@v1", turn_seed(7, 0, False)),
        ("blue_0", "blue_02@v1", turn_seed(7, 0, True)),
        ("red_0", "red_03@v1", turn_seed(7, 1, False)),
        ("blue_0", "blue_02@v1", turn_seed(7, 1, True)),
    ]


def test_a_deal_names_a_policy_for_every_agent_or_for_none() -> None:
    with pytest.raises(ConfigError, match="a policy for each of red_0, red_1, blue_0"):
        DialogueBatch(GameConfig(num_red=2), [Deal(goal=HARMFUL, red_order=(0, 1), policies=("a", "b"))], TextJudge())


def test_seeds_differ_between_turns_and_sides_and_dialogues() -> None:
    seeds = {turn_seed(d, t, b) for d in range(50) for t in range(4) for b in (False, True)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_that_of_split_mix_64() -> None:
    # First outputs of the reference implementation for the state 1234567 (Vigna, splitmix64.c).
    assert seeding._mixed(1234567) == 6457827717110365317
    assert seeding._mixed(1234567 + 0x9E3779B97F4A7C15) == 3203168211198807973


def test_a_finished_dialogue_is_asked_for_nothing() -> None:
    batch = DialogueBatch(GameConfig(num_exchanges=1), [ON_HARMFUL, ON_BENIGN], TextJudge())
    batch.submit({1: "answer"})
    assert [turn.dialogue for turn in batch.pending()] == [0]
    assert not batch.done


def test_the_judge_is_asked_once_about_all_exchanges_of_a_submit() -> None:
    judge = ScriptedJudge(*[verdict()] * 3)
    batch = DialogueBatch(GameConfig(num_exchanges=1), [ON_BENIGN] * 3, judge)
    batch.submit({0: "a", 1: "b", 2: "c"})
    assert judge.num_calls == 1
    assert [case.exchange.blue for case in judge.seen] == ["a", "b", "c"]


def test_the_judge_is_not_asked_before_blue_has_answered() -> None:
    judge = ScriptedJudge()
    DialogueBatch(TWO, [ON_HARMFUL], judge).submit({0: "attack"})
    assert judge.num_calls == 0


def test_the_judge_sees_the_whole_dialogue_with_its_goal() -> None:
    judge = ScriptedJudge(verdict(), verdict())
    play(DialogueBatch(TWO, [ON_HARMFUL], judge), echo)
    assert [(case.goal, len(case.exchanges)) for case in judge.seen] == [(HARMFUL, 1), (HARMFUL, 2)]


def test_verdicts_reach_the_dialogue_they_are_about() -> None:
    batch = DialogueBatch(GameConfig(num_exchanges=1), [ON_HARMFUL] * 2, ScriptedJudge(verdict(0.25), verdict(0.75)))
    batch.submit({1: "attack", 0: "attack"})
    batch.submit({1: "answer", 0: "answer"})  # order of the caller: the first verdict is about dialogue 1
    assert [transcript.utility for transcript in batch.transcripts()] == [0.75, 0.25]


def test_only_agents_act_and_nature_does_not() -> None:
    (transcript,) = play(DialogueBatch(TWO, [ON_BENIGN], TextJudge()), echo)
    assert [agent for agent, _ in transcript.actions] == ["blue_0", "blue_0"]


def test_the_tokens_of_an_action_are_kept() -> None:
    action = Action(text="hi", policy="red_00@v1", token_ids=(1, 2), logps=(-0.5, -1.0), finish_reason="length")
    batch = DialogueBatch(TWO, [ON_HARMFUL], TextJudge())
    batch.submit({0: action})
    assert batch.transcript(0).actions == (("red_0", action),)


def test_an_empty_batch_is_done() -> None:
    assert DialogueBatch(TWO, [], TextJudge()).done


# Pay


def test_a_dialogue_is_paid_by_hand_worked_numbers() -> None:
    # harm 0.25, 0.125, 0.75: u = max = 0.75, paid as 0.25, 0, 0.5
    judge = ScriptedJudge(verdict(0.25), verdict(0.125), verdict(0.75))
    (transcript,) = play(DialogueBatch(GameConfig(), [ON_HARMFUL], judge), echo)
    assert (transcript.utility, transcript.payments) == (0.75, (0.25, 0.0, 0.5))


def test_a_benign_dialogue_is_paid_by_hand_worked_numbers() -> None:
    # c = 2, helpful 1, 0.25: 2 * (1 - 0.25) = 1.5; mean over T = 2 is 0.75
    config = GameConfig(num_exchanges=2, helpfulness_weight=2.0, aggregate="mean")
    judge = ScriptedJudge(verdict(1.0, helpful=1.0), verdict(1.0, helpful=0.25))
    (transcript,) = play(DialogueBatch(config, [ON_BENIGN], judge), echo)
    assert (transcript.utility, transcript.payments) == (0.75, (0.0, 0.75))


def test_a_dialogue_that_goes_on_has_no_utility_yet() -> None:
    batch = DialogueBatch(TWO, [ON_BENIGN], TextJudge())
    batch.submit({0: "a"})
    assert math.isnan(batch.transcript(0).utility)
    assert len(batch.transcript(0).payments) == 1


# Unscored dialogues

BAD_JUDGES = [RaisingJudge(), NanJudge(), WrongCountJudge(1), WrongCountJudge(-1), ScriptedJudge(*[verdict(1.5)] * 2)]


@pytest.mark.parametrize("judge", BAD_JUDGES, ids=lambda judge: type(judge).__name__)
def test_a_judge_that_fails_leaves_the_dialogue_unscored_and_unpaid(judge) -> None:
    (transcript,) = play(DialogueBatch(GameConfig(num_exchanges=1), [ON_HARMFUL], judge), echo)
    assert transcript.unscored
    assert (transcript.utilities, transcript.payments) == ((), ())
    assert math.isnan(transcript.utility)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_failed_verdict_anywhere_marks_the_whole_dialogue(position: int) -> None:
    verdicts = [verdict(1.0)] * 3
    verdicts[position] = failed()
    (transcript,) = play(DialogueBatch(GameConfig(), [ON_HARMFUL], ScriptedJudge(*verdicts)), echo)
    assert (transcript.unscored, transcript.payments) == (True, ())
    assert math.isnan(transcript.utility)


def test_an_unscored_dialogue_is_played_to_its_end() -> None:
    (transcript,) = play(DialogueBatch(GameConfig(), [ON_HARMFUL], ScriptedJudge(failed(), verdict(), verdict())), echo)
    assert len(transcript.exchanges) == len(transcript.verdicts) == 3


def test_a_failure_in_one_dialogue_does_not_touch_the_others() -> None:
    judge = ScriptedJudge(failed(), verdict(0.5))
    transcripts = play(DialogueBatch(GameConfig(num_exchanges=1), [ON_HARMFUL] * 2, judge), echo)
    assert [transcript.unscored for transcript in transcripts] == [True, False]
    assert transcripts[1].utility == 0.5


@given(st.floats(0.0, 1.0), st.integers(0, 50))
def test_every_dialogue_is_either_scored_or_unscored_and_only_scored_ones_are_paid(share: float, seed: int) -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL, ON_BENIGN] * 4, FaultyJudge(TextJudge(), share=share, seed=seed))
    for transcript in play(batch, lambda seen: f"{seed} {echo(seen)}"):
        assert transcript.unscored == any(not item.valid for item in transcript.verdicts)
        assert transcript.unscored == math.isnan(transcript.utility) == (len(transcript.payments) == 0)


# All or nothing


ILLEGAL = {
    "too long": "x" * 2001,
    "not text": 7,
    "no action": None,
}


@pytest.mark.parametrize("illegal", ILLEGAL.values(), ids=ILLEGAL)
def test_one_illegal_action_plays_nothing_at_all(illegal: object) -> None:
    judge = ScriptedJudge()
    batch = DialogueBatch(TWO, [ON_HARMFUL, ON_BENIGN, ON_HARMFUL], judge)
    before = batch.save()
    with pytest.raises(InvalidActionError, match="dialogue 2"):
        batch.submit({0: "fine", 1: "fine", 2: illegal})  # type: ignore[dict-item]
    assert (batch.save(), judge.num_calls) == (before, 0)


@pytest.mark.parametrize("index", [2, -1])
def test_an_unknown_dialogue_plays_nothing_at_all(index: int) -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL] * 2, TextJudge())
    before = batch.save()
    with pytest.raises(OrderError, match=rf"0\.\.1, got {index}"):
        batch.submit({0: "fine", index: "fine"})
    assert batch.save() == before


def test_an_action_of_a_finished_dialogue_plays_nothing_at_all() -> None:
    batch = DialogueBatch(GameConfig(num_exchanges=1), [ON_BENIGN, ON_HARMFUL], TextJudge())
    batch.submit({0: "answer"})
    before = batch.save()
    with pytest.raises(OrderError, match="over"):
        batch.submit({1: "attack", 0: "again"})
    assert batch.save() == before


def test_a_judge_that_breaks_the_protocol_plays_nothing_at_all() -> None:
    # Otherwise the dialogue would have an exchange without a verdict, and end with a utility of half of it.
    batch = DialogueBatch(TWO, [ON_BENIGN], LawlessJudge())
    before = batch.save()
    with pytest.raises(JudgeError, match="lawless@1"):
        batch.submit({0: "answer"})
    assert batch.save() == before


def test_an_interrupted_judge_plays_nothing_at_all() -> None:
    class Interrupted(TextJudge):
        def judge(self, cases):
            raise KeyboardInterrupt

    batch = DialogueBatch(TWO, [ON_BENIGN], Interrupted())
    before = batch.save()
    with pytest.raises(KeyboardInterrupt):
        batch.submit({0: "answer"})
    assert batch.save() == before


# Batch = one at a time; save, restore, clone, replay

CONFIGS = st.builds(
    GameConfig,
    num_exchanges=st.integers(1, 3),
    num_red=st.integers(1, 3),
    aggregate=st.sampled_from(["max", "mean"]),
    benign_prob=st.sampled_from([0.0, 0.5]),
    helpfulness_weight=st.sampled_from([0.0, 1.0, 2.5]),
)


@given(CONFIGS, st.integers(0, 2**32), st.lists(ANY_TEXT, min_size=1, max_size=6))
def test_a_batch_plays_what_its_dialogues_play_one_at_a_time(config: GameConfig, seed: int, texts: list[str]) -> None:
    def say(seen: Observation) -> str:
        return texts[(len(seen.messages) * 7 + seen.turn) % len(texts)]

    judge = FaultyJudge(TextJudge(), share=0.2, seed=seed)
    batch = DialogueBatch.deal(config, GOALS, judge, count=4, rng=np.random.default_rng(seed))
    deals = [Deal(goal=item.goal, red_order=item.red_order) for item in batch.transcripts()]
    alone = [play(DialogueBatch(config, [deal], judge), say)[0] for deal in deals]
    assert [canonical(item) for item in play(batch, say)] == [canonical(item) for item in alone]


@given(CONFIGS, st.integers(0, 2**32), st.lists(ANY_TEXT, min_size=1, max_size=6), st.integers(0, 6))
def test_a_restored_batch_continues_identically(
    config: GameConfig, seed: int, texts: list[str], num_before: int
) -> None:
    def say(seen: Observation) -> Action:
        return Action(text=texts[len(seen.messages) % len(texts)], token_ids=(1, 2), logps=(-0.5, -0.25))

    judge = FaultyJudge(TextJudge(), share=0.2, seed=seed)
    batch = DialogueBatch.deal(config, GOALS, judge, count=3, rng=np.random.default_rng(seed))
    for _ in range(num_before):
        batch.submit({turn.dialogue: say(turn.observation) for turn in batch.pending()})
    again = DialogueBatch.restore(strict_json(batch.save()), config, GOALS, judge)
    assert again.pending() == batch.pending()
    assert [canonical(item) for item in play(again, say)] == [canonical(item) for item in play(batch, say)]


def test_restoring_checks_the_schema_version() -> None:
    saved = {**DialogueBatch(TWO, [ON_HARMFUL], TextJudge()).save(), "schema_version": 999}
    with pytest.raises(ConfigError, match="999"):
        DialogueBatch.restore(saved, TWO, GOALS, TextJudge())


def test_restoring_needs_the_goals_that_were_played() -> None:
    saved = DialogueBatch(TWO, [ON_HARMFUL], TextJudge()).save()
    with pytest.raises(ConfigError, match="'h'"):
        DialogueBatch.restore(saved, TWO, GoalSet([BENIGN]), TextJudge())


def test_restoring_for_a_team_of_another_size_is_refused() -> None:
    saved = DialogueBatch(TWO, [ON_HARMFUL], TextJudge()).save()
    with pytest.raises(ConfigError, match="red_order"):
        DialogueBatch.restore(saved, GameConfig(num_red=3), GOALS, TextJudge())


def test_a_save_does_not_change_while_the_batch_goes_on() -> None:
    batch = DialogueBatch(TWO, [ON_BENIGN], TextJudge())
    saved = batch.save()
    text = json.dumps(saved)
    batch.submit({0: "a"})
    assert json.dumps(saved) == text


def test_a_clone_is_independent() -> None:
    batch = DialogueBatch(TWO, [ON_BENIGN, ON_HARMFUL], TextJudge())
    batch.submit({0: "a", 1: "b"})
    before = batch.save()
    play(batch.clone(), echo)
    assert batch.save() == before


def test_a_clone_continues_identically() -> None:
    batch = DialogueBatch(TWO, [ON_BENIGN, ON_HARMFUL], TextJudge())
    batch.submit({0: "a", 1: "b"})
    twin = batch.clone()
    assert [canonical(item) for item in play(twin, echo)] == [canonical(item) for item in play(batch, echo)]


@given(CONFIGS, st.integers(0, 2**32), st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_replaying_under_the_same_judge_changes_nothing(config: GameConfig, seed: int, texts: list[str]) -> None:
    judge = FaultyJudge(TextJudge(), share=0.2, seed=seed)
    batch = DialogueBatch.deal(config, GOALS, judge, count=2, rng=np.random.default_rng(seed))
    for transcript in play(batch, lambda seen: texts[len(seen.messages) % len(texts)]):
        assert canonical(replay(config, transcript, judge)) == canonical(transcript)


def test_replaying_under_another_judge_changes_verdicts_and_pay_only() -> None:
    (played,) = play(DialogueBatch(TWO, [ON_HARMFUL], TextJudge("a")), echo)
    (expected,) = play(DialogueBatch(TWO, [ON_HARMFUL], TextJudge("b")), echo)
    judged_again = replay(TWO, played, TextJudge("b"))
    assert canonical(judged_again) == canonical(expected)
    assert (judged_again.exchanges, judged_again.actions) == (played.exchanges, played.actions)
    assert judged_again.verdicts != played.verdicts


@given(CONFIGS, st.integers(0, 99), st.lists(ANY_TEXT, min_size=3, max_size=3), st.integers(0, 9))
def test_rescoring_many_is_replaying_each(config: GameConfig, seed: int, texts: list[str], stop: int) -> None:
    rng = np.random.default_rng(seed)
    batch = DialogueBatch.deal(config, GOALS, TextJudge("a"), count=3, rng=rng)
    for _ in range(stop):
        for turn in batch.pending():
            batch.submit({turn.dialogue: texts[turn.dialogue]})
    recorded, other = batch.transcripts(), TextJudge("b")
    again = [canonical(item) for item in rescore(config, recorded, other)]
    assert again == [canonical(replay(config, item, other)) for item in recorded]
    unchanged = [canonical(item) for item in rescore(config, recorded, batch.judge)]
    assert unchanged == [canonical(item) for item in recorded]


def test_rescoring_asks_the_judge_once() -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL, ON_BENIGN], TextJudge())
    judge = ScriptedJudge(*[verdict(0.1)] * 4)
    assert len(rescore(TWO, play(batch, echo), judge)) == 2
    assert judge.num_calls == 1


def test_a_finished_slot_can_be_filled_again() -> None:
    batch = DialogueBatch(GameConfig(num_exchanges=1), [ON_HARMFUL, ON_HARMFUL], TextJudge())
    batch.submit({0: "a"})
    with pytest.raises(OrderError, match="dialogue 0 to be over"):
        batch.refill(0, ON_BENIGN)
    batch.submit({0: "b"})
    batch.refill(0, ON_BENIGN)
    assert [turn.observation.agent_id for turn in batch.pending()] == ["blue_0", "red_0"]
    assert batch.transcript(0).exchanges == ()


def test_replaying_half_a_dialogue_stops_where_it_stopped() -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL], TextJudge())
    batch.submit({0: "attack"})
    assert canonical(replay(TWO, batch.transcript(0), TextJudge())) == canonical(batch.transcript(0))


def test_an_unscored_dialogue_can_be_scored_by_a_judge_that_works() -> None:
    (played,) = play(DialogueBatch(TWO, [ON_HARMFUL], RaisingJudge()), echo)
    assert not replay(TWO, played, TextJudge()).unscored


# Chance


def test_a_deal_follows_from_the_generator() -> None:
    deals = [
        DialogueBatch.deal(GameConfig(num_red=3), GOALS, TextJudge(), count=8, rng=np.random.default_rng(5))
        for _ in range(2)
    ]
    assert deals[0].save() == deals[1].save()


def test_a_smaller_deal_is_the_beginning_of_a_larger_one() -> None:
    small, large = (DialogueBatch.deal(TWO, GOALS, TextJudge(), count=n, rng=np.random.default_rng(5)) for n in (3, 9))
    assert [t.goal.id for t in small.transcripts()] == [t.goal.id for t in large.transcripts()][:3]


# JSON

NUMBERS = st.floats(0.0, 1.0)
RAW = st.dictionaries(
    st.text(max_size=8), st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)), max_size=3
)


@given(NUMBERS, NUMBERS, NUMBERS, st.text(max_size=10), RAW)
def test_a_verdict_survives_json(
    harm: float, refusal: float, helpful: float, judge_id: str, raw: dict[str, float | str]
) -> None:
    original = Verdict(harm=harm, refusal=refusal, helpful=helpful, judge_id=judge_id, raw=raw)
    assert verdict_from_json(strict_json(verdict_to_json(original))) == original


@given(st.text(max_size=10), RAW)
def test_a_failed_verdict_keeps_all_its_provenance_through_json(judge_id: str, raw: dict[str, float | str]) -> None:
    original = Verdict(harm=0.5, refusal=0.0, helpful=0.0, valid=False, judge_id=judge_id, raw=raw)
    again = verdict_from_json(strict_json(verdict_to_json(original)))
    assert (again.valid, again.judge_id, again.raw) == (False, judge_id, raw)
    assert math.isnan(again.harm + again.refusal + again.helpful)


@pytest.mark.parametrize("part", [float("nan"), float("inf"), None, [1, 2], {"a": 1}])
def test_whatever_a_judge_keeps_beside_its_numbers_can_be_stored(part: object) -> None:
    original = verdict(0.5)
    kept = strict_json(verdict_to_json(Verdict(harm=0.5, refusal=0, helpful=0, raw={"part": part, "n": np.int64(2)})))  # type: ignore[dict-item]
    assert (kept["raw"], kept["harm"]) == ({"part": str(part), "n": 2.0}, original.harm)  # type: ignore[index,call-overload]


def test_a_verdict_of_numpy_numbers_survives_json() -> None:
    original = Verdict(harm=np.float32(0.5), refusal=np.float64(0.25), helpful=1, judge_id="np@1")
    assert verdict_from_json(strict_json(verdict_to_json(original))) == original


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"token_ids": (1,), "logps": (-1.0, -2.0)}, "one log-probability per sampled token, got 2 for 1"),
        ({"token_ids": (1,), "logps": (float("nan"),)}, "NaN or infinity"),
        ({"token_ids": (1,), "logps": (float("-inf"),)}, "NaN or infinity"),
        ({"temperature": float("nan")}, "NaN or infinity"),
        ({"temperature": None}, "expected numbers"),
        ({"token_ids": (1,), "logps": ("high",)}, "expected numbers"),
    ],
)
def test_an_action_whose_tokens_a_learner_could_not_use_does_not_come_to_be(record: dict, match: str) -> None:
    with pytest.raises(InvalidActionError, match=match):
        Action(text="a", **record)


def test_an_action_of_array_numbers_can_be_saved() -> None:
    action = Action(text="a", token_ids=np.array([1, 2]), logps=np.array([-1.0, -2.0], np.float32), temperature=1)  # type: ignore[arg-type]
    batch = DialogueBatch(TWO, [ON_HARMFUL], TextJudge())
    batch.submit({0: action})
    saved = strict_json(batch.save())
    again = DialogueBatch.restore(saved, TWO, GOALS, TextJudge()).save()  # type: ignore[arg-type]
    assert strict_json(again) == saved


def test_nobody_but_red_is_shown_the_goal_and_nobody_the_labelled_replies() -> None:
    labelled = replace(HARMFUL, examples=(LabelledReply(reply="the answer", harm=1, refusal=0, helpful=1),))
    batch = DialogueBatch(TWO, [Deal(goal=labelled)], TextJudge())
    seen = batch.observe(0, "red_0").goal
    assert seen is not None
    assert (seen.text, seen.examples) == (HARMFUL.text, ())
    for stranger in ("blue_1", "red_1", "nobody"):
        with pytest.raises(ConfigError, match="expected an agent among red_0, blue_0"):
            batch.observe(0, stranger)


@given(
    st.builds(
        Action,
        text=ANY_TEXT.map(lambda text: text.encode("utf-8", "replace").decode()),
        policy=st.text(max_size=8),
        prompt_ids=st.lists(st.integers(0, 10**6), max_size=4).map(tuple),
        token_ids=st.just((3, 1, 2)),
        logps=st.one_of(st.just(()), st.lists(st.floats(-100, 0), min_size=3, max_size=3).map(tuple)),
        temperature=st.floats(0, 2),
        finish_reason=st.sampled_from(get_args(FinishReason)),
    )
)
def test_an_action_survives_a_save(action: Action) -> None:
    batch = DialogueBatch(TWO, [ON_HARMFUL], TextJudge())
    batch.submit({0: action})
    saved = strict_json(batch.save())
    assert action_from_json(saved["dialogues"][0]["actions"][0][1]) == action


def test_two_surrogates_that_json_would_join_to_one_character_do_not_change_a_saved_dialogue() -> None:
    batch = DialogueBatch(TWO, [ON_BENIGN], TextJudge())
    batch.submit({0: "\ud83d\ude00"})
    again = DialogueBatch.restore(strict_json(batch.save()), TWO, GOALS, TextJudge())
    assert canonical(replay(TWO, again.transcript(0), TextJudge())) == canonical(batch.transcript(0))


@pytest.mark.parametrize("number", [None, "high", float("inf"), -0.1, [0.5]])
def test_a_verdict_without_a_share_in_it_has_failed(number: object) -> None:
    from rtg_env.judges.base import judge_safely

    class Odd:
        judge_id = "odd@1"

        def judge(self, cases):
            return [Verdict(harm=number, refusal=0.0, helpful=0.0) for _ in cases]

    case = Case(goal=Goal(id="g", text="x"), exchanges=(Exchange(red="a", blue="b"),))
    assert not judge_safely(Odd(), [case])[0].valid
