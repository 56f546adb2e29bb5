from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from rtg_env import tactics as tactics_module
from rtg_env import testing
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError, InvalidActionError, OrderError
from rtg_env.goals import Goal
from rtg_env.limits import Limits
from rtg_env.tactics import TACTICS, Tactic, TacticFeatures, legal_tactics, tactic_action
from rtg_env.testing.games import plain
from rtg_env.types import Observation, Verdict
from rtg_env.views import attack
from tests.doubles import ANY_TEXT, GOALS, HARMFUL, FaultyJudge, RaisingJudge, ScriptedJudge, TextJudge, failed, verdict
from tests.speakers import REPLIES, TERSE, Talker, Unwell

SHORT = (
    Tactic(name="ask", template="{goal}"),
    Tactic(name="nag", template="{reply}? {goal}", first_turn=1),
    Tactic(name="beg", template="Please! {goal}", repeatable=False),
)
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_exchanges": 1},
    {"num_red": 2, "num_exchanges": 4, "member": 1},
    {"num_red": 3, "benign_prob": 0.5, "payment": "terminal"},
    {"tactics": SHORT, "encoder": HashingEncoder(3), "max_action_chars": 60, "opponents": Talker(replies=TERSE)},
    {"red_tokens": 40, "blue_tokens": 30, "limits": Limits(calls=4)},
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(shape) or "default")


def make(**changes: Any) -> Any:
    return tactics_module.tactics(**{"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **changes})


def make_vector(num_envs: int, **changes: Any) -> Any:
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **changes}
    return tactics_module.tactics_vector(num_envs, **given)


def seen(
    turn: int = 0, *said: str, goal: str = "Do it.", notes: tuple[str, ...] = (), num_exchanges: int = 4
) -> Observation:
    roles = ("user", "assistant")
    messages = tuple((roles[index % 2], text) for index, text in enumerate(said))
    return Observation("red_0", messages, turn, num_exchanges, goal=Goal(id="g", text=goal), reasoning=notes)  # type: ignore[arg-type]  # roles alternate


def rollout(env: Any, seed: int, num_steps: int = 20) -> list[Any]:
    """Everything that is shown while random choices are made, legal or not."""
    rng = np.random.default_rng(seed)
    shown = [plain(env.reset(seed=seed))]
    for _ in range(num_steps):
        step = env.step(int(rng.integers(env.action_space.n)))
        shown.append(plain(step))
        if step[2] or step[3]:
            shown.append(plain(env.reset()))
    return shown


def pickled(env: Any) -> Any:
    return pickle.loads(pickle.dumps(env))  # noqa: S301 - our own


# What others ask of an environment


@shapes
def test_gymnasium_finds_nothing_to_complain_about(shape: dict[str, Any]) -> None:
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **shape}
    env = gymnasium.make("RedTeam/Tactics-v0", **given)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)


def test_gymnasium_finds_nothing_to_complain_about_in_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    gymnasium_check_env(gymnasium.make("RedTeam/Tactics-v0").unwrapped)
    assert "[harmful goal]" in capsys.readouterr().out


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]], ids=lambda shape: "-".join(shape) or "default")
def test_it_keeps_our_own_clauses(shape: dict[str, Any]) -> None:
    # A verdict that fails is drawn again here, so that somebody is paid after it: clause `unscored` is about other games.
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **shape}
    skip = ("unscored", "across-processes", "gymnasium-api")
    report = testing.check_env(partial(tactics_module.tactics, **given), seeds=(0, 3), skip=skip)
    assert {"replay", "copies", "pickled", "wrong-types", "awkward-text", "kept-observations"} <= set(report.passed)
    assert {"free-text"} <= {finding.clause for finding in report.skipped}


def test_it_plays_the_same_in_other_processes() -> None:
    others = [
        clause.name for clause in testing.ENV_CLAUSES if clause.name not in ("episode", "replay", "across-processes")
    ]
    report = testing.check_env(partial(tactics_module.tactics, goals=GOALS, judge=TextJudge()), skip=others, seeds=(0,))
    assert report.passed == ("episode", "replay", "across-processes")


@shapes
def test_a_vector_plays_what_single_environments_play(shape: dict[str, Any]) -> None:
    ours, theirs = (
        make_vector(3, **shape),
        SyncVectorEnv([partial(make, **shape)] * 3, autoreset_mode=AutoresetMode.SAME_STEP),
    )
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    assert plain(ours.reset(seed=7)) == plain(theirs.reset(seed=7))
    for _ in range(25):
        actions = rng.integers(ours.single_action_space.n, size=3)
        step, other = ours.step(actions), theirs.step(actions)
        assert plain(step) == plain(other)
        assert [part.dtype for part in step[:4]] == [part.dtype for part in other[:4]]


def test_gymnasium_makes_a_vector() -> None:
    envs = gymnasium.make_vec("RedTeam/Tactics-v0", num_envs=5, goals=GOALS, judge=TextJudge(), tactics=SHORT)
    observations, infos = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    assert infos["action_mask"].tolist() == [[1, 0, 1]] * 5
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.action_masks().dtype == bool  # type: ignore[attr-defined]  # MaskablePPO asks for it
    assert envs.action_masks().tolist() == [[True, False, True]] * 5  # type: ignore[attr-defined]


# Filling in


def test_a_tactic_is_filled_in_with_the_goal_and_the_last_answer() -> None:
    tactic = Tactic(name="x", template='"{reply}" is no answer. {goal} {goal}')
    assert tactic.fill(seen(2, "a", "first", "b", "second")) == '"second" is no answer. Do it. Do it.'
    assert tactic.fill(seen()) == '"" is no answer. Do it. Do it.'


@given(goal=ANY_TEXT, reply=ANY_TEXT, left=ANY_TEXT, right=ANY_TEXT)
def test_what_stands_in_a_text_is_never_filled_in(goal: str, reply: str, left: str, right: str) -> None:
    observation = seen(1, "ask", reply + "{goal}{reply}{0}%s", goal=goal + "{reply}{goal}{x.__class__}")
    for template in ("{goal}|{reply}", "{reply}|{goal}"):
        parts = {"{goal}": goal + "{reply}{goal}{x.__class__}", "{reply}": reply + "{goal}{reply}{0}%s"}
        expected = "|".join(parts[part] for part in template.split("|"))
        assert Tactic(name="x", template=template).fill(observation) == expected


@pytest.mark.parametrize(
    "template", ["{0}", "{goal.__class__}", "{goal!r}", "{{goal}", "}{", "{ goal }", "%(goal)s", "\\1"]
)
def test_a_template_is_no_format_string(template: str) -> None:
    filled = Tactic(name="x", template=template).fill(seen(goal="G"))
    assert filled == template.replace("{goal}", "G")


def test_of_a_long_answer_the_beginning_is_repeated() -> None:
    observation = seen(1, "ask", "🙂" * 299 + "ab")
    assert Tactic(name="x", template="{reply}").fill(observation) == "🙂" * 299 + "a"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"name": ""}, "a name of 1 to 100 characters"),
        ({"name": "x" * 101}, "a name of 1 to 100 characters"),
        ({"name": "a\ud800"}, "no lone surrogates"),  # it would come back from red's notes as another name
        ({"name": 3}, "a name and a template that are text, got 3"),
        ({"template": None}, "that are text, got 'x', None"),
        ({"first_turn": -1}, "first_turn must be a whole number >= 0, got -1 for 'x'"),
        ({"first_turn": 1.5}, "first_turn must be a whole number >= 0, got 1.5"),
        ({"first_turn": True}, "first_turn must be a whole number >= 0, got True"),
    ],
)
def test_a_tactic_with_wrong_settings_is_refused(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Tactic(**{"name": "x", "template": "{goal}", **changes})


def test_the_built_in_tactics_are_filled_in_for_every_built_in_goal() -> None:
    for goal in gymnasium.make("RedTeam/Tactics-v0").unwrapped._play.table.goals.harmful:  # type: ignore[attr-defined]
        observation = Observation("red_0", (("user", "a"), ("assistant", "b")), 1, 3, goal=goal)
        assert legal_tactics(TACTICS, observation, 2000).all()
        assert all("{" not in tactic.fill(observation) for tactic in TACTICS)


# What is legal


def test_a_tactic_is_legal_from_its_first_turn_on() -> None:
    late = (SHORT[0], Tactic(name="late", template="x", first_turn=2))
    assert [legal_tactics(late, seen(turn), 99).tolist() for turn in range(4)] == [[True, False]] * 2 + [
        [True, True]
    ] * 2


def test_a_tactic_that_is_not_repeatable_is_legal_once_for_the_whole_team() -> None:
    assert legal_tactics(SHORT, seen(1, notes=("ask",)), 99).tolist() == [True, True, True]
    assert legal_tactics(SHORT, seen(1, notes=("beg",)), 99).tolist() == [True, True, False]


def test_a_tactic_that_makes_too_long_a_sentence_is_not_legal() -> None:
    length = len("Please! Do it.")
    assert legal_tactics(SHORT, seen(), length).tolist() == [True, False, True]
    assert legal_tactics(SHORT, seen(), length - 1).tolist() == [True, False, False]


def test_the_first_tactic_is_always_legal_and_cut() -> None:
    assert legal_tactics(SHORT, seen(), 3).tolist() == [True, False, False]
    assert tactic_action(SHORT[0], seen(), 3).text == "Do "


def test_a_sentence_carries_its_tactic_as_a_private_note() -> None:
    action = tactic_action(SHORT[2], seen(), 99, policy="red_01")
    assert (action.text, action.reasoning, action.policy) == ("Please! Do it.", "beg", "red_01")


@shapes
def test_a_choice_plays_its_tactic_if_it_is_legal_and_else_the_first_one(shape: dict[str, Any]) -> None:
    env, rng = make(**shape), np.random.default_rng(1)
    outcomes = set()
    for seed in range(8):
        _, info = env.reset(seed=seed)
        assert info["illegal"] is False
        while True:
            mask = env.action_masks()
            assert np.array_equal(mask, info["action_mask"].astype(bool))
            assert info["action_mask"].dtype == np.int8
            before, choice = env.view._table.observe(0), int(rng.integers(env.action_space.n))
            _, _, terminated, truncated, info = env.step(choice)
            own = [action for agent, action in env.transcript().actions if agent == env._play.table.learner][-1]
            tactic = env.view.features.tactics[choice if mask[choice] else 0]
            assert own.reasoning == tactic.name
            assert own.text == tactic.fill(before)[: env._play.table.config.max_action_chars]
            assert info["illegal"] is not bool(mask[choice])
            outcomes.add(info["illegal"])
            if terminated or truncated:
                break
    assert outcomes == ({False, True} if shape != {"num_exchanges": 1} else outcomes)


def test_an_illegal_choice_is_told_in_the_final_info_of_a_vector_and_not_in_the_next_dialogue() -> None:
    envs = make_vector(2, num_exchanges=1, tactics=SHORT)
    envs.reset(seed=0)
    infos = envs.step([1, 0])[-1]
    assert infos["final_info"]["illegal"].tolist() == [True, False]
    assert infos["illegal"].tolist() == [False, False]


def test_the_mask_fits_the_sample_of_the_space() -> None:
    env = make(tactics=SHORT)
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(30):
        choice = env.action_space.sample(info["action_mask"])
        _, _, terminated, _, info = env.step(choice)
        assert info["illegal"] is False
        if terminated:
            _, info = env.reset()


def test_a_mask_can_be_changed_without_harm() -> None:
    env = make(tactics=SHORT)
    _, info = env.reset(seed=0)
    info["action_mask"][:] = 0
    env.view.mask(0)[:] = False
    env.action_masks()[:] = False
    assert env.action_masks().tolist() == [True, False, True]
    assert env.step(2)[-1]["illegal"] is False


def test_masks_are_worked_out_once_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(tactics_module, "legal_tactics", lambda *args: calls.append(1) or legal_tactics(*args))
    envs = make_vector(4, num_exchanges=4)
    envs.reset(seed=0)
    for _ in range(3):
        envs.step([0] * 4)
        envs.action_masks()
    assert len(calls) == 4 * 4


def test_a_view_of_text_has_no_mask() -> None:
    with pytest.raises(ConfigError, match="expected a view with discrete actions, TextView takes any text"):
        attack(goals=GOALS, judge=TextJudge()).action_masks()


@pytest.mark.parametrize("action", [-1, 3, 1.0, "1", None, np.array([1]), np.float32(1), np.bool_(True)])
def test_what_is_no_choice_is_refused_and_nothing_has_happened(action: Any) -> None:
    env = make(tactics=SHORT)
    env.reset(seed=0)
    env.step(1)
    twin = copy.deepcopy(env)
    with pytest.raises(InvalidActionError, match="action must be a whole number below 3, got"):
        env.step(action)
    assert plain(env._play.info(0)) == plain(twin._play.info(0))
    assert plain(env.step(0)) == plain(twin.step(0))


@pytest.mark.parametrize("action", [2, np.int64(2), np.uint8(2), np.array(2)])
def test_whole_numbers_of_every_kind_are_choices(action: Any) -> None:
    env = make(tactics=SHORT)
    env.reset(seed=0)
    env.step(action)
    assert env.transcript().actions[0][1].reasoning == "beg"


def test_true_is_the_choice_of_number_one_as_gymnasium_has_it() -> None:
    env = make(tactics=TACTICS)
    env.reset(seed=0)
    env.step(True)
    assert env.transcript().actions[0][1].reasoning == TACTICS[1].name


def test_one_wrong_choice_stops_the_whole_vector() -> None:
    envs = make_vector(3, tactics=SHORT)
    envs.reset(seed=0)
    before = plain(envs.transcripts())
    with pytest.raises(InvalidActionError, match="got 7"):
        envs.step([1, 0, 7])
    with pytest.raises(InvalidActionError, match="expected 3 actions, one per slot"):
        envs.step([1, 0])
    assert plain(envs.transcripts()) == before
    assert envs.step([0, 0, 0])[-1]["illegal"].tolist() == [False] * 3


def test_a_step_before_reset_or_after_the_end_is_refused() -> None:
    env = make(num_exchanges=1)
    with pytest.raises(OrderError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(OrderError, match="call reset"):
        env.step(0)


def test_a_failing_opponent_leaves_everything_as_it_was() -> None:
    blue = Unwell(1)
    env, sound = make(opponents=blue, tactics=SHORT), make(tactics=SHORT)
    env.reset(seed=3), sound.reset(seed=3)
    assert plain(env.step(1)) == plain(sound.step(1))
    before = plain(env._play.info(0))
    with pytest.raises(ConnectionError):
        env.step(2)
    assert plain(env._play.info(0)) == before
    assert plain(env.step(2)) == plain(sound.step(2))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled], ids=["copy", "pickle"])
def test_a_copy_goes_on_alike(twin_of: Any) -> None:
    envs = make_vector(3, num_red=2)
    envs.reset(seed=0)
    envs.step([1, 2, 3])
    twin = twin_of(envs)
    for actions in ([5, 5, 0], [7, 6, 1], [2, 2, 2]):
        assert plain(envs.step(actions)) == plain(twin.step(actions))


# What is seen


def features(**changes: Any) -> TacticFeatures:
    return TacticFeatures(**{"tactics": SHORT, "encoder": HashingEncoder(2), "judge": TextJudge(), **changes})


class Halves:
    """0.5 for the goal, -0.25 for everything else."""

    def encode(self, texts: Any) -> np.ndarray:
        return np.array([[0.5] if text == HARMFUL.text else [-0.25] for text in texts])


def test_a_row_worked_out_by_hand() -> None:
    # goal 0.5, reply -0.25; turn 2 of 4; harm .7, refusal .2, helpful .1; ask once, nag never, beg once in 4 exchanges.
    judge = ScriptedJudge(Verdict(harm=0.7, refusal=0.2, helpful=0.1))
    observation = seen(2, "a", "b", "c", "d", goal=HARMFUL.text, notes=("beg", "Hm.", "ask"))
    row = features(encoder=Halves(), judge=judge)([observation])[0]
    assert row == pytest.approx([0.5, -0.25, 0.5, 0.7, 0.2, 0.1, 0.25, 0.0, 0.25])
    assert row.dtype == np.float32
    case = judge.seen[0]
    assert case.exchanges == (("a", "b"), ("c", "d"))
    assert case.goal == observation.goal


def test_before_the_first_answer_nothing_is_judged_and_the_answer_is_zero() -> None:
    judge = ScriptedJudge()
    row = features(encoder=Halves(), judge=judge)([seen(goal=HARMFUL.text)])[0]
    assert row.tolist() == [0.5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert judge.num_calls == 0


@pytest.mark.parametrize("judge", [ScriptedJudge(failed()), RaisingJudge(), ScriptedJudge(verdict(math.nan))])
def test_a_failed_verdict_is_three_zeros(judge: Any) -> None:
    row = features(encoder=Halves(), judge=judge)([seen(1, "a", "b")])[0]
    assert row[3:6].tolist() == [0, 0, 0]
    assert np.isfinite(row).all()


def test_numbers_of_an_encoder_beyond_one_are_cut() -> None:
    class Wide:
        def encode(self, texts: Any) -> np.ndarray:
            return np.full((len(texts), 1), 7.0)

    assert features(encoder=Wide())([seen(1, "a", "b")])[0, :2].tolist() == [1.0, 1.0]


def test_no_observations_have_no_rows() -> None:
    assert features()([]).shape == (0, features().size)


def test_the_size_is_the_length_of_a_row() -> None:
    assert features().size == features()([seen()]).shape[1] == 2 * 2 + 4 + 3
    assert make().observation_space.shape == (2 * 32 + 4 + len(TACTICS),)


def test_blue_has_no_such_numbers() -> None:
    with pytest.raises(ConfigError, match="expected red's observation with a goal, got one of blue_0"):
        features()([seen()._replace(agent_id="blue_0", goal=None)])


@pytest.mark.parametrize(
    ("tactics", "found"),
    [
        ((), "at least one tactic"),
        ((SHORT[0], SHORT[0]), r"no name twice, got \['ask', 'ask'\]"),
        ((SHORT[1], SHORT[0]), "expected the first tactic to be legal always, 'nag' is not; put another one first"),
        ((SHORT[2], SHORT[0]), "'beg' is not"),
    ],
)
def test_a_set_of_tactics_without_one_that_is_always_legal_is_refused(tactics: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        features(tactics=tactics)


class Faulty:
    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def encode(self, texts: Any) -> Any:
        return self.rows


@pytest.mark.parametrize("rows", [np.zeros(3), np.zeros((2, 3)), np.full((1, 3), np.nan)])
def test_an_encoder_without_rows_of_numbers_is_refused_at_once(rows: Any) -> None:
    with pytest.raises(ConfigError, match="finite numbers from Faulty"):
        make(encoder=Faulty(rows))


def test_a_text_is_encoded_once_whatever_the_number_of_dialogues_and_steps() -> None:
    asked: list[str] = []

    class Counting(HashingEncoder):
        def encode(self, texts: Any) -> np.ndarray:
            asked.extend(texts)
            return super().encode(texts)

    envs = make_vector(6, encoder=Counting(4))
    envs.reset(seed=0)
    for _ in range(9):
        envs.step([0] * 6)
    assert len(asked) == len(set(asked))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    shape=st.fixed_dictionaries(
        {
            "num_red": st.integers(1, 3),
            "num_exchanges": st.integers(3, 4),
            "payment": st.sampled_from(["exchange", "terminal"]),
            "blue_filters": st.sampled_from([(), ("first-line",), ("normalised",)]),
            "red_filters": st.sampled_from([(), ("printable",)]),
            "max_action_chars": st.sampled_from([25, 2000]),
            "red_tokens": st.sampled_from([0, 25]),
            "blue_tokens": st.sampled_from([0, 12]),
        }
    ),
    share=st.sampled_from([0.0, 0.5]),
)
def test_a_policy_sees_what_the_environment_shows_at_every_step(seed: int, shape: dict[str, Any], share: float) -> None:
    """What was learnt here must speak alike in rollouts, where nobody knows the verdicts."""
    judge = FaultyJudge(TextJudge(), share=share)
    replies = TERSE if shape["max_action_chars"] < 100 else REPLIES
    env = make(judge=judge, opponents=Talker(replies=replies), member=seed % shape["num_red"], **shape)
    of_policy = TacticFeatures(TACTICS, HashingEncoder(), judge)
    rng = np.random.default_rng(seed)
    shown, _ = env.reset(seed=seed)
    while True:
        observation = env._play.table.observe(0)
        assert np.array_equal(of_policy([observation])[0], shown)
        assert np.array_equal(of_policy([seen(1, "other", "dialogue"), observation])[1], shown)
        assert env.observation_space.contains(shown)
        assert env.action_masks().tolist() == legal_tactics(TACTICS, observation, shape["max_action_chars"]).tolist()
        shown, _, terminated, truncated, _ = env.step(int(rng.integers(8)))
        if terminated or truncated:
            break


def test_notes_of_the_whole_team_count() -> None:
    env = make(num_red=2, num_exchanges=4, member=1, tactics=TACTICS)
    names = [tactic.name for tactic in TACTICS]
    found = set()
    for seed in range(12):
        shown, _ = env.reset(seed=seed)
        notes = env._play.table.observe(0).reasoning
        assert shown[-len(names) :].tolist() == [notes.count(name) / 4 for name in names]
        found.add(notes)
    assert {(), ("plain",), ("opener",)} <= found


def test_a_judge_that_keeps_failing_truncates_and_shows_no_verdict() -> None:
    env = make(judge=ScriptedJudge(verdict(0.5), *[failed()] * 4), num_exchanges=3, opponents=Talker(replies=("No.",)))
    env.reset(seed=0)
    assert env.step(0)[1:4] == (0.5, False, False)
    shown, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["unscored"] is True
    assert shown[64:68].tolist() == [np.float32(2 / 3), 0, 0, 0]


# Settings


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="got taktics; correct the name"):
        make(taktics=SHORT)


def test_the_goal_of_a_red_learner_is_harmful() -> None:
    env = make()
    with pytest.raises(ConfigError, match="is benign"):
        env.reset(options={"goal_id": "b"})
    _, info = env.reset(options={"goal_id": "h"})
    assert info["goal_id"] == HARMFUL.id
