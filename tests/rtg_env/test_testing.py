"""The conformance suite: what is sound passes, and each kind of damage is named by exactly its clause."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import rtg_env
from rtg_env.errors import ConfigError, ConformanceError, RTGError
from rtg_env.judges import KeywordJudge, OfflineJudge
from rtg_env.testing import ENV_CLAUSES, JUDGE_CLAUSES, Conformance, Finding, check_env, check_judge
from rtg_env.testing.__main__ import main
from rtg_env.testing.copies import spoil
from rtg_env.types import Action
from rtg_env.wrappers import FilterMessages
from tests import broken_games as broken
from tests.broken_games import ours
from tests.doubles import LawlessJudge, NanJudge, RaisingJudge, TextJudge, WrongCountJudge
from tests.judges_for_runs import Flaky, Vowels
from tests.text_games import Count, Debate, Guess, Notation, Vote, wrapped_debate

ROOT = Path(__file__).resolve().parents[2]
HERE: dict[str, Any] = {"skip": ("across-processes",), "seeds": (0,)}
"""Processes take a second each; the tests about them say so."""

SIDES_ARE_SECRET: dict[str, Any] = {
    "secrets": lambda env: {agent: [side] for agent, side in env.unwrapped.sides.items()}
}
TEAMS: dict[str, Any] = {"teams": {"pro_0": "pro", "con_0": "con"}}


def names(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.clause for finding in findings}


def failures(check: Any, *args: Any, **options: Any) -> dict[str, str]:
    with pytest.raises(ConformanceError) as caught:
        check(*args, **options)
    assert caught.value.report is not None
    return {finding.clause: finding.reason for finding in caught.value.report.failed}


# What is sound passes

SETTINGS = [
    {"num_red": 1},
    {"num_red": 2, "num_exchanges": 2, "benign_prob": 0.9},
    {"num_red": 3, "payment": "terminal", "aggregate": "mean"},
    {"red_tokens": 6, "blue_tokens": 9},
    {"red_filters": ("printable", "first-sentence"), "blue_filters": ("normalised",), "max_action_chars": 80},
    {"blue_system_prompt": "Sesame opens the door.", "num_red": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids="-".join)
def test_our_environment_passes(settings: dict[str, Any]) -> None:
    report = check_env(ours(**settings), **HERE)
    assert names(report.skipped) == {
        "across-processes",
        "pettingzoo-parallel-api",
        "pettingzoo-parallel-seed",
        "gymnasium-api",
    }


def test_our_wrapper_passes() -> None:
    report = check_env(lambda: FilterMessages(ours(num_red=2)(), blue=("first-line",)), **HERE)
    assert {"tampered-infos", "copies", "wrong-types", "secrets", "zero-sum"} <= set(report.passed)


@pytest.mark.parametrize("num_red", [1, 2])
def test_our_parallel_environment_passes(num_red: int) -> None:
    report = check_env(ours(rtg_env.parallel_env, num_red=num_red), **HERE)
    assert {"replay", "copies", "secrets", "unscored", "zero-sum", "pettingzoo-parallel-api"} <= set(report.passed)


@pytest.mark.parametrize("name", ["our_env", "our_parallel_env"])
def test_our_environments_play_the_same_in_other_processes(name: str) -> None:
    others = [clause.name for clause in ENV_CLAUSES if clause.name not in ("episode", "replay", "across-processes")]
    report = check_env(getattr(broken, name), skip=others, num_episodes=3)
    assert report.passed == ("episode", "replay", "across-processes")


def test_our_environment_keeps_the_reasoning_of_red_from_blue() -> None:
    def say(agent: str, observation: Any, rng: np.random.Generator) -> Action:
        return Action(text="Hello.", reasoning=f"I shall say hello, thought {rng.integers(100)}.")

    assert "secrets" in check_env(ours(num_red=2), say=say, **HERE).passed


def test_a_game_of_others_under_the_wrappers_of_pettingzoo_passes() -> None:
    report = check_env(wrapped_debate, zero_sum=True, **SIDES_ARE_SECRET, seeds=(0, 1))
    assert {"copies", "pickled", "across-processes", "secrets", "zero-sum", "step-after-end"} <= set(report.passed)
    reasons = {finding.clause: finding.reason for finding in report.skipped}
    assert reasons["saved-state"] == "the environment has no get_state()"
    assert reasons["transcript"] == "the environment has no transcript()"
    assert "takes no judge=" in reasons["judged"]
    assert "takes no render_mode" in reasons["rendering"]


def test_without_secrets_and_teams_a_game_of_others_is_not_said_to_keep_them() -> None:
    report = check_env(Debate, **HERE)
    assert {"secrets", "zero-sum"} <= names(report.skipped)
    assert "rendering" in report.passed


def test_a_game_with_a_notation_of_its_own_passes_with_its_own_speaker() -> None:
    def say(agent: str, observation: Any, rng: np.random.Generator) -> str:
        return "a1b" + str(rng.integers(1, 9))

    skip = ("across-processes", "free-text", "pettingzoo-api", "pettingzoo-seed")
    assert "awkward-text" in check_env(Notation, say=say, skip=skip).passed


def test_a_simultaneous_game_of_others_passes() -> None:
    report = check_env(Vote, **HERE)
    assert {"replay", "copies", "wrong-types", "awkward-text", "pettingzoo-parallel-api"} <= set(report.passed)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*:UserWarning")
def test_a_gymnasium_environment_passes_alone_and_wrapped() -> None:
    assert "gymnasium-api" in check_env(Guess, **HERE).passed
    assert "replay" in check_env(lambda: gymnasium.wrappers.TimeLimit(Guess(), 2), **HERE).passed


def test_a_game_of_numbers_passes_and_is_not_asked_for_text() -> None:
    report = check_env(Count, **HERE)
    assert {"json-values", "wrong-types", "awkward-text", "gymnasium-api"} <= set(report.passed)
    reasons = {finding.clause: finding.reason for finding in report.skipped}
    assert reasons["free-text"] == "the actions are numbers, not text"


@pytest.mark.parametrize(
    "judge", [OfflineJudge(), KeywordJudge(["tunnel"]), TextJudge(), Vowels()], ids=lambda j: j.judge_id
)
def test_our_judges_pass(judge: Any) -> None:
    assert check_judge(judge).passed == tuple(clause.name for clause in JUDGE_CLAUSES)


# Each kind of damage is named by its clause, with the remedy

DAMAGE: list[tuple[str, Any, dict[str, Any], str]] = [
    ("episode", broken.Endless, {"max_steps": 10}, "none after 10 steps"),
    ("spaces", broken.NewSpaces, {}, "a new one at each call"),
    ("spoken-actions", broken.NarrowSpace, {"say": lambda *_: "hello world"}, "'hello world' (agent pro_0"),
    ("free-text", broken.NarrowSpace, {}, "'hello world' in the action space"),
    ("observations", broken.ShortObservationSpace, {}, "observation of pro_0 in its space"),
    ("json-values", broken.SetInInfo, {}, "set is not JSON"),
    ("json-values", broken.ArrayInInfo, {}, "ndarray is not JSON"),
    ("json-values", broken.NanInInfo, {}, "not JSON compliant"),
    ("finite-rewards", broken.NumpyReward, {}, "float64"),
    ("finite-rewards", broken.NanReward, {}, "float nan"),
    ("boolean-flags", broken.NumpyFlags, {}, "got bool"),
    ("replay", broken.UuidInInfo, {}, "infos.pro_0.request"),
    ("reset-again", broken.SeedsOnce, {}, "after an unfinished one"),
    ("reset-again", broken.RemembersLines, {}, "topic"),
    ("unknown-options", broken.StrictOptions, {}, "KeyError"),
    ("global-random", broken.DrawsGlobally, {}, "stay as it is"),
    ("global-random", broken.ReadsGlobally, {}, "whatever the global random state is"),
    ("interleaved", broken.SharesLines, {}, "beside others"),
    ("across-processes", broken.HashInInfo, {"skip": ()}, "infos.pro_0.order"),
    ("copies", broken.CopiesFresh, {}, "a copy made at move 1"),
    ("copies", broken.CloneShares, {}, "go on as if there were no other"),
    ("pickled", broken.PicklesFresh, {}, "a copy made at move 1"),
    ("saved-state", ours(broken.LosesGenerator), {}, "generator"),
    ("transcript", broken.LiveTranscript, {}, "to stay as it was"),
    ("transcript", broken.CountsTranscripts, {}, "num_asked"),
    ("tampered-observations", broken.SharesObservation, {}, "now"),
    ("tampered-infos", broken.KeepsInfo, {}, "who"),
    ("tampered-infos", broken.SharesInfo, {}, "num_lines"),
    ("kept-observations", broken.ReusesBuffer, {}, "when it was returned"),
    ("secrets", broken.LeaksInObservation, SIDES_ARE_SECRET, "what con_0 is shown"),
    ("secrets", broken.LeaksInInfo, SIDES_ARE_SECRET, "private to con_0"),
    ("dead-steps", broken.NeverLeaves, {}, "pro_0 to be gone"),
    ("dead-steps", broken.LeavesTogether, {}, "one dead step for each"),
    ("dead-steps", broken.DeadMayTalk, {}, "a dead agent to be refused"),
    ("step-before-reset", broken.StepsBeforeReset, {}, "before reset() to raise"),
    ("step-after-end", broken.IgnoresLateSteps, {}, "after the end"),
    ("wrong-types", broken.AcceptsAnything, {}, "the action None to be refused"),
    ("wrong-types", broken.AddsAnyNumber, {}, "the action 3 to be refused"),
    ("wrong-types", broken.ForgetsToRefuse, {}, "nothing to happen"),
    ("awkward-text", broken.HalfAStep, {}, "a lone surrogate is refused"),
    ("awkward-text", broken.TwoErrors, {}, "UnicodeEncodeError for a lone surrogate"),
    ("awkward-text", broken.SilentError, {}, "refused with a message"),
    ("awkward-text", broken.NanOnNul, {}, "a sound episode after NUL"),
    ("rendering", broken.RawRender, {}, "U+0000"),
    ("zero-sum", broken.PaysBoth, TEAMS, "add up to 0"),
    ("zero-sum", broken.PaysBoth, {"zero_sum": True}, "add up to 0"),
    ("zero-sum", ours(broken.PaysRedUnlike, num_red=2), {}, "team red to be paid alike"),
    ("judged", ours(broken.NoFlag), {}, "None under a judge"),
    ("unscored", ours(broken.HidesFailure), {}, "to be True"),
    ("unscored", ours(broken.PaysAfterFailure), {}, "nothing to be paid to red_0"),
    ("pettingzoo-api", broken.ObservesAlways, {}, "must return a None"),
    ("pettingzoo-seed", broken.UnseededSpace, {}, "Incorrect action"),
    ("pettingzoo-render", broken.HumanReturnsText, {}, "AssertionError"),
    ("pettingzoo-parallel-api", ours(broken.ForgetsAnInfo), {}, "AssertionError"),
    ("pettingzoo-parallel-seed", ours(broken.UnseededParallel), {}, "Incorrect action seeding"),
    ("gymnasium-api", broken.OwnGenerator, {}, "super().reset(seed=seed)"),
]


@pytest.mark.parametrize(
    ("clause", "make_env", "options", "says"),
    DAMAGE,
    ids=[f"{clause}-{getattr(make, '__name__', '')}-{index}" for index, (clause, make, *_) in enumerate(DAMAGE)],
)
def test_a_broken_game_is_named_by_exactly_one_clause(
    clause: str, make_env: Any, options: dict[str, Any], says: str
) -> None:
    found = failures(check_env, make_env, **{**HERE, **options})
    remedy = next(item.remedy for item in ENV_CLAUSES if item.name == clause)
    assert set(found) == {clause}
    assert found[clause].startswith("expected ")
    assert says in found[clause]
    assert found[clause].endswith(remedy)


def test_every_clause_about_environments_has_a_game_that_breaks_it() -> None:
    assert {clause for clause, *_ in DAMAGE} == {clause.name for clause in ENV_CLAUSES}


JUDGE_DAMAGE: list[tuple[str, Any, str]] = [
    ("protocol", broken.Nameless(), "not empty"),
    ("protocol", broken.Renamed(), "to stay the same"),
    ("protocol", object(), "judge(cases)"),
    ("empty-batch", broken.NoEmptyBatch(), "IndexError"),
    ("one-verdict-per-case", broken.Short(), "got 1"),
    ("one-verdict-per-case", WrongCountJudge(-1), "verdicts on a batch"),
    ("one-verdict-per-case", RaisingJudge(), "server is down"),
    ("numbers", NanJudge(), "harm in [0, 1]"),
    ("json-raw", broken.NumpyRaw(), "raw to be JSON"),
    ("repeatable", broken.Moody(), "asked again"),
    ("batch-invariance", broken.Relative(), "alone as in a batch"),
    ("unchanged-cases", broken.Greedy(), "stay as they were"),
    ("global-random", broken.DrawingJudge(), "stay as it is"),
    ("hostile-text", broken.Encoding(), "a lone surrogate"),
    ("hostile-text", Flaky(), "UnicodeEncodeError"),
]


@pytest.mark.parametrize(("clause", "judge", "says"), JUDGE_DAMAGE, ids=lambda item: type(item).__name__)
def test_a_broken_judge_is_named_by_exactly_one_clause(clause: str, judge: Any, says: str) -> None:
    # A judge that always raises also cannot take an empty batch.
    found = failures(check_judge, judge, skip=("empty-batch",) if clause == "one-verdict-per-case" else ())
    assert set(found) == {clause}
    assert says in found[clause]
    assert found[clause].endswith(next(item.remedy for item in JUDGE_CLAUSES if item.name == clause))


def test_every_clause_about_judges_has_a_judge_that_breaks_it() -> None:
    assert {clause for clause, *_ in JUDGE_DAMAGE} == {clause.name for clause in JUDGE_CLAUSES}


def test_a_judge_that_returns_no_list_is_named() -> None:
    assert "one-verdict-per-case" in failures(check_judge, LawlessJudge())


def test_a_judge_whose_numbers_depend_a_little_on_the_batch_passes_with_a_tolerance() -> None:
    class Padded(TextJudge):
        def judge(self, cases: Any) -> Any:
            shift = 1e-7 * len(cases)
            return [dataclasses.replace(v, harm=min(1.0, v.harm + shift)) for v in super().judge(cases)]

    assert set(failures(check_judge, Padded())) == {"batch-invariance"}
    assert check_judge(Padded(), tolerance=1e-5).failed == ()


# Reports


def test_one_error_lists_every_clause_that_fails() -> None:
    class Twice(broken.SetInInfo, broken.SharesObservation):
        pass

    with pytest.raises(ConformanceError) as caught:
        check_env(Twice, **HERE)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, RTGError)
    assert "2 failed" in str(caught.value)
    assert re.findall(r"^- ([a-z-]+): ", str(caught.value), flags=re.MULTILINE) == [
        "json-values",
        "tampered-observations",
    ]


def test_a_failure_says_agent_step_and_seed() -> None:
    assert "(agent pro_0, step 4, seed 0)" in failures(check_env, broken.NanReward, **HERE)["finite-rewards"]


def test_what_needs_a_failed_clause_is_skipped_with_that_reason() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_env(broken.UuidInInfo, **HERE)
    report = caught.value.report
    assert report is not None
    assert Finding("copies", "needs replay, which was not kept") in report.skipped


def test_a_skipped_clause_is_listed_and_its_failure_is_not() -> None:
    report = check_env(broken.SharesInfo, seeds=(0,), skip=("tampered-infos", "across-processes"))
    assert Finding("tampered-infos", "left out by the caller") in report.skipped
    assert report.failed == ()


def test_the_report_prints_as_a_table() -> None:
    report = Conformance(
        subject="mine",
        passed=("a",),
        failed=(Finding("bb", "expected x, got y; do z"),),
        skipped=(Finding("c", "why"),),
    )
    assert str(report).split("\n") == [
        "mine: 1 passed, 1 failed, 1 skipped",
        "a   passed",
        "bb  FAILED   expected x, got y; do z",
        "c   skipped  why",
    ]


@pytest.mark.parametrize("clause", [*ENV_CLAUSES, *JUDGE_CLAUSES], ids=lambda clause: clause.name)
def test_every_clause_says_what_it_asks_and_what_to_do(clause: Any) -> None:
    assert clause.asks.endswith(".")
    assert clause.remedy
    every = [item.name for item in (ENV_CLAUSES if clause in ENV_CLAUSES else JUDGE_CLAUSES)]
    assert all(every.index(needed) < every.index(clause.name) for needed in clause.needs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ("nonsense",)}, "names of clauses"),
        ({"skip": "replay"}, "names of clauses"),
        ({"seeds": ()}, "at least one seed"),
        ({"max_steps": 0}, "at least one seed, episode and step"),
    ],
)
def test_a_wrong_argument_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_env(Debate, **options)


def test_what_is_no_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pettingzoo\.AECEnv.*got dict"):
        check_env(dict)


def test_a_judge_needs_a_case() -> None:
    with pytest.raises(ConfigError, match="at least one case"):
        check_judge(TextJudge(), cases=[])


# Other processes


@pytest.mark.parametrize(
    ("make_env", "reason"),
    [(lambda: Debate(None), "cannot reach another process"), (None, "move it from the main script")],
)
def test_a_function_that_cannot_reach_another_process_is_skipped_with_the_reason(make_env: Any, reason: str) -> None:
    if make_env is None:
        make_env = type("InMain", (Debate,), {"__module__": "__main__"})
        sys.modules["__main__"].InMain = make_env  # type: ignore[attr-defined]
    report = check_env(make_env, seeds=(0,))
    assert reason in next(finding.reason for finding in report.skipped if finding.clause == "across-processes")


def test_a_judge_that_is_taken_and_never_asked_is_not_said_to_be_heard() -> None:
    report = check_env(lambda judge=None: Debate(), **HERE)
    reasons = {finding.clause: finding.reason for finding in report.skipped}
    assert "never asked" in reasons["judged"]
    assert "never asked" in reasons["unscored"]


def test_an_environment_is_found_by_its_name() -> None:
    assert "across-processes" in check_env("tests.text_games:Debate", seeds=(0,)).passed


# Good manners


def test_checking_prints_nothing_warns_of_nothing_and_leaves_the_global_generators_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ), list(sys.path))  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(ours(num_red=2), **HERE)
        check_judge(TextJudge())
    assert (random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ), list(sys.path)) == before  # noqa: NPY002
    assert capsys.readouterr() == ("", "")


def test_other_remarks_of_pettingzoo_reach_the_user() -> None:
    class Misnamed(Debate):
        def __init__(self) -> None:
            super().__init__()
            self.possible_agents = ["Pro", "Con"]
            self._seen = dict(zip(self.possible_agents, self._seen.values(), strict=True))
            self._said = dict(zip(self.possible_agents, self._said.values(), strict=True))

        def pay(self) -> dict[str, float]:
            return {"Pro": 1.0, "Con": -1.0}

    with pytest.warns(UserWarning, match="We recommend agents to be named"):
        check_env(Misnamed, **HERE)


def test_every_environment_that_was_made_is_closed() -> None:
    made: list[Any] = []

    class Counted(Debate):
        def __init__(self) -> None:
            super().__init__()
            self.closed = False
            made.append(self)

        def close(self) -> None:
            self.closed = True

    check_env(Counted, **HERE)
    assert len(made) > 30
    assert all(env.closed for env in made)


def test_containers_that_refuse_to_be_changed_are_fine() -> None:
    class Frozen(dict):
        def __setitem__(self, key: object, value: object) -> None:
            raise TypeError("frozen")

        def clear(self) -> None:
            raise TypeError("frozen")

    inner = [1]
    value = (Frozen(a=inner, b={"c": 1}), np.arange(3))
    spoil(value)
    assert value[0] == {"a": [], "b": {}}
    assert value[1].tolist() == [1, 0, -1]


def test_importing_the_core_does_not_import_the_suite() -> None:
    code = "import rtg_env, sys; print('rtg_env.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_importing_the_suite_needs_neither_pytest_nor_torch() -> None:
    code = "import rtg_env.testing, sys; print({'pytest', 'torch', 'pygame'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


# The command line


def test_the_command_line_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tests.text_games:Debate", "--skip", "across-processes", "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("tests.text_games:Debate: ")
    assert re.search(r"^replay +passed$", out, flags=re.MULTILINE)


def test_the_command_line_fails_on_a_broken_game(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tests.broken_games:SetInInfo", "--skip", "across-processes"]) == 1
    assert re.search(r"^json-values +FAILED +expected", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_command_line_checks_judges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--judge", "tests.doubles:TextJudge"]) == 0
    assert main(["--judge", "tests.doubles:NanJudge"]) == 1
    assert "harm in [0, 1]" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["a:b", "--judge", "c:d"], ["no_such_module:f"], ["tests.doubles:Nobody"]])
def test_a_wrong_call_of_the_command_line_is_explained(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


# The page


PAGE = ROOT / "docs" / "testing.md"


def test_the_page_runs_from_top_to_bottom_and_checks_in_ten_lines() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len([line for line in blocks[1].splitlines() if line.strip()]) <= 10
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile("\n".join(blocks), "docs/testing.md", "exec"), {"__name__": "page"})  # our own page
    assert out.getvalue().count(" 0 failed, ") == 3


@pytest.mark.parametrize("clauses", [ENV_CLAUSES, JUDGE_CLAUSES], ids=["env", "judge"])
def test_the_page_lists_every_clause_as_it_is(clauses: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [
        clause.name for clause in clauses if f"| `{clause.name}` | {clause.asks} | {clause.remedy} |" not in page
    ]
    assert missing == []
