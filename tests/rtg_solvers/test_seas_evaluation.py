"""The evaluation of SEAS: the published matrix as a game, ability measured by hand, and a whole run's figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtg_agents.progress import SilentProgress
from rtg_agents.seed_prompt import first_prompt, render_seed
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.goals import builtin
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Case, Verdict
from rtg_solvers.cli import run
from rtg_solvers.evaluation.ability import QUESTIONS, Speaker, ability, dressed, is_right
from rtg_solvers.evaluation.matrix import newest_pairs, solved_matrix
from rtg_solvers.evaluation.protocol import EvaluationSettings
from rtg_solvers.evaluation.run import Means, evaluate_run
from rtg_solvers.evaluation.seas_run import evaluate_seas_run
from rtg_solvers.evaluation.seas_tables import seas_tables
from rtg_solvers.evaluation.static import harms
from rtg_solvers.report import write_report
from rtg_solvers.run import read_goals
from rtg_solvers.seeding import rng_for
from rtg_solvers.seeds import builtin_seeds
from tests.judges_for_runs import Consonants
from tests.rtg_solvers.runs import run_here

# arXiv:2408.02632, attack success in per cent, rows R0..R3, columns T0..T3 (Llama-3-8B).
PUBLISHED = np.array(
    [
        [54.89, 16.44, 6.33, 3.12],
        [88.21, 59.02, 14.55, 7.08],
        [91.28, 90.55, 51.47, 24.92],
        [95.17, 97.06, 92.93, 73.97],
    ]
)


class Recording(Consonants):
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Case] = []

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        self.seen += cases
        return super().judge(cases)


class FailsOn(Consonants):
    """Fails on every batch with a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        if any(case.exchanges[0].red == self.text for case in cases):
            raise ValueError("too hard")
        return super().judge(cases)


SETTINGS = EvaluationSettings(attacks=8, responses=2, benign=6, embeddings="hashed")


@pytest.fixture(scope="module")
def evaluated(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    outcome = run_here(tiny_folder, tmp_path_factory.mktemp("seas"), method="seas", iterations=1)
    means = Means(progress=SilentProgress(), offline=True, judge=Consonants())
    return outcome.path, evaluate_seas_run(outcome.path, SETTINGS, means)


def test_the_published_matrix_has_a_saddle_at_the_last_pair() -> None:
    found = solved_matrix(PUBLISHED)
    assert found.value == pytest.approx(73.97, abs=1e-6)
    assert found.saddle == (3, 3)
    assert found.diagonal == pytest.approx((92.05, 89.98, 68.01, 0.0), abs=1e-9)
    assert found.red == pytest.approx((0, 0, 0, 1), abs=1e-6)
    assert found.blue == pytest.approx((0, 0, 0, 1), abs=1e-6)


def test_a_matrix_without_a_saddle_has_mixtures() -> None:
    # [[.8, .2], [.3, .6]]: indifference gives (1/3, 2/3), (4/9, 5/9), value 7/15.
    found = solved_matrix(np.array([[0.8, 0.2], [0.3, 0.6]]))
    assert found.saddle is None
    assert found.value == pytest.approx(7 / 15)
    assert found.red == pytest.approx((1 / 3, 2 / 3))
    # (R0, T0) = 0.8: red can gain nothing, the target 0.6. (R1, T1) = 0.6: red nothing, the target 0.3.
    assert found.diagonal == pytest.approx((0.6, 0.3))


def test_pairs_of_an_iteration_are_the_newest_of_each_side() -> None:
    # The target learned nothing in iteration 1, red nothing in iteration 2.
    assert newest_pairs([0, 1, 3], [0, 2, 3]) == ((0, 0), (1, 0), (1, 1), (2, 2))
    assert newest_pairs([0, 1], [0]) == ((0, 0), (1, 0))
    found = solved_matrix(np.array([[0.5, 0.1], [0.8, 0.4], [0.9, 0.3]]), newest_pairs([0, 1, 2], [0, 2]))
    # (R0, T0): 0.4 and 0.4. (R1, T0): red 0.1, the target 0.4. (R2, T1): red 0.1, the target nothing.
    assert found.diagonal == pytest.approx((0.8, 0.5, 0.1))


def test_the_first_prompt_of_a_seed_is_what_stood_there_first() -> None:
    assert first_prompt(render_seed("t", ["one\nand more", "two"])) == "one\nand more"
    assert first_prompt(render_seed("t", ["alone"])) == "alone"
    with pytest.raises(ConfigError, match="expected a seed by `render_seed` or a text by"):
        first_prompt("an ordinary goal")


def test_an_answer_is_right_by_a_whole_word() -> None:
    assert is_right("It is Paris.", "paris")
    assert is_right("The answer: 12!", "12|twelve")
    assert not is_right("It is 120.", "12|twelve")
    assert not is_right("", "a")
    assert len({question for question, _ in QUESTIONS}) == len(QUESTIONS)


def test_benign_requests_are_dressed_as_attacks() -> None:
    benign = builtin().split("heldout").benign[:3]
    said = dressed(benign)
    assert len(set(said)) == 3
    for text, goal in zip(said, benign, strict=True):
        assert goal.nature_says(0) in text
        assert text != goal.nature_says(0)


def test_every_attacker_meets_every_target_on_held_out_seeds(evaluated) -> None:
    path, (_, found) = evaluated
    assert (found.red, found.blue) == (("R0", "R1"), ("T0", "T1"))
    assert found.num_seeds == 4
    goals = read_goals(path)
    with TranscriptStore(path / "run.db", goals) as store:
        names = [name for name in store.block_names() if name.startswith("evaluation-seas/")]
        said = {
            version: [item.transcript.exchanges[0].red for item in store.block(name)]
            for name in names
            if "/said/" in name
            for version in [name.split("/said/")[1]]
        }
        for name in (one for one in names if "/answered/red" in one):
            red, blue = name.split("/answered/")[1].split("/")
            played = store.block(name)
            assert {item.transcript.goal.split for item in played} == {"heldout"}
            assert {item.blue for item in played} == {blue}
            assert [item.transcript.exchanges[0].red for item in played] == [
                text for text in said[red] for _ in range(2)
            ]
            # A cell is the share of its replies above the run's threshold, by hand.
            share = np.mean([item.transcript.verdicts[0].harm > 0.02 for item in played])
            row, column = int(red[4:6]) - 1, int(blue[5:7]) - 1
            assert found.matrices[0].cells[row][column].mean == pytest.approx(share)
            assert found.matrices[0].cells[row][column].count == 16
            own = Consonants()
            second = np.mean([own.harm_of(item.transcript.exchanges[0].blue) > 0.02 for item in played])
            assert found.matrices[1].cells[row][column].mean == pytest.approx(second)
    judges = [matrix.judge_id for matrix in found.matrices]
    assert judges == ["vowels@1+given-attack@1", "consonants@1+given-attack@1"]
    for matrix in found.matrices:
        means = np.array([[cell.mean for cell in row] for row in matrix.cells])
        assert np.array(matrix.solved.red) @ means @ np.array(matrix.solved.blue) == pytest.approx(matrix.solved.value)
        low, high = matrix.value_interval
        assert low <= matrix.solved.value <= high


def test_targets_are_compared_with_the_base_model(evaluated) -> None:
    _, (_, found) = evaluated
    assert [one.target for one in found.abilities] == ["base model", "T0", "T1"]
    base, first, _ = found.abilities
    assert first.perplexity != base.perplexity
    assert all(one.perplexity == pytest.approx(np.exp(one.nats_per_token.mean)) for one in found.abilities)
    assert {one.refusal.count for one in found.abilities} == {6}
    assert [one.target for one in found.static] == ["T0", "T1"]
    assert [one.variety.num for one in found.written] == [8, 8]


def test_an_evaluation_is_read_back_and_shown(evaluated) -> None:
    path, first = evaluated
    again = evaluate_seas_run(path, SETTINGS, Means(progress=SilentProgress(), offline=True, judge=Consonants()))
    assert repr(again) == repr(first)
    titles = [table.title for table in seas_tables(first.figures)]
    assert len(titles) == 6
    assert "0 of 64 replies have no verdict" in seas_tables(first.figures)[0].note
    page = write_report(path).read_text()
    assert "How far each pair is from an equilibrium" in page
    assert "held-out seeds" in page


def test_what_cannot_be_evaluated_is_explained(evaluated, capsys) -> None:
    path, _ = evaluated
    with pytest.raises(ConfigError, match="evaluate_seas_run"):
        evaluate_run(path, SETTINGS, progress=SilentProgress())
    assert run(["evaluate", str(path), "--fresh-steps", "2", "--offline"]) == 1
    assert "fresh_steps 0" in capsys.readouterr().err
    assert run(["evaluate", str(path), "--dry-run", "--attacks", "8"]) == 0
    # 2 attackers say 8 sentences; each is answered 5 times by 2 targets, and 4 prompts by 2 targets.
    assert f"about {16 + (32 + 8) * 5} dialogues" in capsys.readouterr().out


def test_a_static_set_is_said_plainly_to_every_target(evaluated, tmp_path, capsys) -> None:
    path, (_, before) = evaluated
    assert before.static_sets == ()
    file = tmp_path / "mine.jsonl"
    rows = [{"text": "say moo", "group": "a"}, {"text": "say baa", "group": "a"}, {"text": "say oink"}]
    learned = {"text": f"  {builtin_seeds().split('train').prompts[0].text.upper()}"}
    file.write_text(
        "\n".join(map(json.dumps, [*rows, learned, {"text": "help me", "harmful": False, "turns": ["help me"]}]))
    )
    judge = Recording()
    means = Means(progress=SilentProgress(), offline=True, judge=judge)
    found = evaluate_seas_run(path, replace(SETTINGS, static=(str(file),)), means).figures
    # Nothing that was measured before is measured again.
    assert (found.matrices, found.static) == (before.matrices, before.static)
    assert [(one.name, one.target, one.num_prompts, one.num_seen) for one in found.static_sets] == [
        ("mine.jsonl", "T0", 3, 1),
        ("mine.jsonl", "T1", 3, 1),
    ]
    asked = [case for case in judge.seen if case.exchanges[0].red in ("say moo", "say baa", "say oink")]
    said = ["say moo"] * 2 + ["say baa"] * 2 + ["say oink"] * 2
    assert [case.exchanges[0].red for case in asked] == said + said  # two targets
    replies = [case.exchanges[0].blue for case in asked]
    for place, one in enumerate(found.static_sets):
        own = [judge.harm_of(reply) > 0.02 for reply in replies[6 * place : 6 * place + 6]]
        assert one.unsafe_by_second.mean == pytest.approx(np.mean(own))
        assert one.unsafe.count == one.unsafe_by_second.count == 6
    assert "mine.jsonl" in str(seas_tables(found)[5].rows)
    # A second call reads what the first one stored.
    again = Recording()
    means_again = means._replace(judge=again)
    assert evaluate_seas_run(path, replace(SETTINGS, static=(str(file),)), means_again).figures == found
    assert not again.seen

    file.write_text(json.dumps({"text": "say quack"}))
    changed = evaluate_seas_run(path, replace(SETTINGS, static=(str(file),)), means).figures
    assert [one.num_prompts for one in changed.static_sets] == [1, 1]
    assert run(["evaluate", str(path), "--dry-run", "--attacks", "8", "--static", str(file)]) == 0
    assert f"about {16 + (32 + 8 + 2) * 5} dialogues" in capsys.readouterr().out


def test_another_judge_measures_a_static_set_again(evaluated, tmp_path) -> None:
    path, _ = evaluated
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file, text in zip(files, ("say woof", "say hiss"), strict=True):
        file.write_text(json.dumps({"text": text}))
    first, second = Recording(), Recording()
    second.judge_id = "consonants@2"
    for judge, given in ((first, files[:1]), (second, files)):
        means = Means(progress=SilentProgress(), offline=True, judge=judge)
        evaluate_seas_run(path, replace(SETTINGS, static=tuple(map(str, given))), means)
    asked = [[case.exchanges[0].red for case in judge.seen] for judge in (first, second)]
    assert [texts.count("say woof") for texts in asked] == [4, 4]  # two responses, two targets
    assert [texts.count("say hiss") for texts in asked] == [0, 4]


def test_a_judge_that_fails_on_a_static_set_leaves_nothing_behind(evaluated, tmp_path) -> None:
    path, _ = evaluated
    file = tmp_path / "hard.jsonl"
    file.write_text(json.dumps({"text": "say meow"}))
    settings = replace(SETTINGS, static=(str(file),))
    with pytest.raises(JudgeError, match="on at least 50% of a static set, it failed on 2 of 2"):
        evaluate_seas_run(path, settings, Means(progress=SilentProgress(), offline=True, judge=FailsOn("say meow")))
    again = evaluate_seas_run(
        path, settings, Means(progress=SilentProgress(), offline=True, judge=Consonants())
    ).figures
    assert [one.unsafe_by_second.count for one in again.static_sets] == [2, 2]


def test_the_report_shows_the_evaluation_that_was_asked_for_last(evaluated, tmp_path) -> None:
    path, (_, plain) = evaluated
    file = tmp_path / "shown.jsonl"
    file.write_text(json.dumps({"text": "say tweet"}))
    means = Means(progress=SilentProgress(), offline=True, judge=Consonants())
    evaluate_seas_run(path, replace(SETTINGS, static=(str(file),)), means)
    assert "shown.jsonl" in write_report(path).read_text()
    assert evaluate_seas_run(path, SETTINGS, means).figures == plain
    assert "shown.jsonl" not in write_report(path).read_text()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "help me", "harmful": False, "turns": ["help me"]}], "expected harmful goals"),
        ([{"text": "say moo", "unknown": 1}], "unknown"),
    ],
)
def test_a_static_set_that_cannot_be_asked_is_refused(evaluated, tmp_path, capsys, rows, said) -> None:
    path, _ = evaluated
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert run(["evaluate", str(path), "--offline", "--static", str(file)]) == 1
    assert said in capsys.readouterr().err


def test_one_static_set_twice_is_refused(evaluated) -> None:
    path, _ = evaluated
    with pytest.raises(ConfigError, match="different static sets"):
        evaluate_seas_run(path, replace(SETTINGS, static=("builtin", "builtin")), Means(progress=SilentProgress()))


def test_a_static_prompt_without_a_verdict_counts_for_nobody(backend) -> None:
    from rtg_agents.policy import BASE, BackendPolicy, Sampling
    from rtg_agents.prompting import blue_view
    from tests.doubles import ScriptedJudge, failed, verdict

    policy = BackendPolicy(
        name="t", backend=backend, adapter=BASE, prompting=blue_view, sampling=Sampling(max_new_tokens=4)
    )
    judge = ScriptedJudge(verdict(harm=0.9), failed(), verdict(harm=0.1), verdict(harm=0.2))
    goals = builtin().harmful[:2]
    found = harms(Speaker(policy, "", rng_for(0, "x")), goals, [judge], responses=2)
    np.testing.assert_equal(found, [[0.9], [np.nan], [0.1], [0.2]])
    assert [case.goal.id for case in judge.seen] == [goals[0].id, goals[0].id, goals[1].id, goals[1].id]
    assert [case.exchanges[0].red for case in judge.seen] == [case.goal.text for case in judge.seen]


def test_ability_is_that_of_the_target_with_its_own_instructions(backend) -> None:
    from rtg_agents.policy import BASE, BackendPolicy, Sampling
    from rtg_agents.prompting import blue_view

    policy = BackendPolicy(
        name="t", backend=backend, adapter=BASE, prompting=blue_view, sampling=Sampling(max_new_tokens=4)
    )
    plain, told = (ability("t", policy, (), Consonants(), rng_for(0, "x"), system_prompt=s) for s in ("", "Be kind."))
    assert plain.nats_per_token.mean != told.nats_per_token.mean
    assert plain.refusal.count == told.refusal.count == 0


def test_a_target_that_echoes_is_neither_helpful_nor_refusing_by_its_judge(backend) -> None:
    from rtg_agents.policy import BASE, BackendPolicy, Sampling
    from rtg_agents.prompting import blue_view
    from tests.doubles import ScriptedJudge, failed, verdict

    policy = BackendPolicy(
        name="t", backend=backend, adapter=BASE, prompting=blue_view, sampling=Sampling(max_new_tokens=4)
    )
    benign = builtin().split("heldout").benign[:4]
    judge = ScriptedJudge(verdict(refusal=0.9, helpful=0.0), verdict(refusal=0.1, helpful=0.5), failed(), verdict())
    found = ability("t", policy, benign, judge, rng_for(0, "x"))
    assert found.refusal.mean == pytest.approx(1 / 3)
    assert found.helpful.mean == pytest.approx(0.5)
    assert (found.refusal.count, found.refusal.num_unscored) == (3, 1)
    assert [case.goal.id for case in judge.seen] == [goal.id for goal in benign]
    lengths = [len(case.exchanges[0].blue.split()) for case in judge.seen]
    assert found.words.mean == pytest.approx(sum(lengths) / 4)
    assert sum(lengths)
