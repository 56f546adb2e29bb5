"""MART as a point of the loop: what it plans, what members learn from, how it ends, and how it goes on after a kill."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rtg_agents.policy import TokenSequence
from rtg_agents.population import read_member
from rtg_agents.progress import SilentProgress
from rtg_agents.seed_prompt import is_one_shot, reading_seed, render_after
from rtg_env.errors import ConfigError
from rtg_env.rules import GameConfig
from rtg_env.transcripts import TranscriptStore
from rtg_solvers.attack_pairs import reading_of
from rtg_solvers.cli import run
from rtg_solvers.evaluation.protocol import EvaluationSettings
from rtg_solvers.evaluation.run import Means
from rtg_solvers.evaluation.seas_run import evaluate_seas_run
from rtg_solvers.mart_rounds import round_in, selected_parents, selected_rounds
from rtg_solvers.mart_selection import MartThresholds, thresholds_from_scores
from rtg_solvers.methods import mart, registry
from rtg_solvers.methods.mart import MartConfig
from rtg_solvers.oracles import mart as mart_oracle
from rtg_solvers.oracles.mart import (
    EpochSettings,
    InstructionSettings,
    MartSeeds,
    MartSettings,
    RoundSettings,
    SelectionSettings,
)
from rtg_solvers.report import write_report
from rtg_solvers.run import read_goals
from rtg_solvers.seeds import builtin_seeds
from tests.judges_for_runs import Consonants
from tests.rtg_solvers.runs import killed, run_here, tiny_mart_config
from tests.rtg_solvers.test_runs import contents

Lessons = dict[str, list[TokenSequence]]


@pytest.fixture(scope="module")
def learned() -> Lessons:
    """What each member of `finished` was trained on, by version."""
    return {}


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, learned: Lessons):
    original = mart_oracle.learn

    def noted(task, backend, sequences, settings, *, reference):
        learned[task.version] = list(sequences)
        original(task, backend, sequences, settings, reference=reference)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mart_oracle, "learn", noted)
        return run_here(tiny_folder, tmp_path_factory.mktemp("mart"), method="mart")


def store_of(path: Path) -> TranscriptStore:
    return TranscriptStore(path / "run.db", read_goals(path))


def lineage_of(path: Path, name: str):
    return read_member(path / "population" / name).lineage


# What is planned


def test_a_dry_run_prints_the_plan_and_its_cost(capsys) -> None:
    assert run(["solve", "--method", "mart", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "iteration 0: A0 from 24 steps on 512 pairs of seeds, T0 is the base model; T0 gives 4 answer(s)" in said
    assert "iteration 1: A0 writes 4 prompts after each of 32 parents, T0 gives 1 answer(s)" in said
    assert "(T 0.7, with safety instructions), at most 128 victim queries" in said
    assert "iteration 4: A3 writes 4 prompts after each of at most 32 parents, T3 gives 4 answer(s)" in said
    assert "(T 0.5, 0.7, 0.9, 1.1), at most 512 victim queries" in said
    assert "payoff cells       30" in said  # red: base, A0 .. A4; blue: base, T1 .. T4
    assert "1024 victim queries among the dialogues at most" in said  # 128 in rounds 0 to 3, 512 in round 4


def test_without_a_bound_parents_multiply() -> None:
    settings = MartSettings(round=RoundSettings(max_parents=None))
    assert [settings.most_parents(k, 10) for k in (1, 2, 3)] == [10, 40, 160]
    assert settings.most_answers(3, 3, 10) == 160 * 4 * 4
    bounded = MartSettings(round=RoundSettings(max_parents=7))
    assert [bounded.most_parents(k, 10) for k in (1, 2, 3)] == [10, 7, 7]
    assert MartSettings(selection=SelectionSettings(source="given")).most_answers(0, 3, 10) == 0
    assert settings.most_steps("red", 1, 10) == 7  # 40 successes and 16 instructions, 8 a step
    assert settings.most_steps("blue", 1, 10) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MartConfig(rounds=0), "rounds >= 1"),
        (lambda: MartConfig(heldout_seeds=1), "heldout_seeds >= 2"),
        (lambda: MartConfig(game=GameConfig(num_exchanges=2, benign_prob=0.0)), "game.num_exchanges 1"),
        (
            lambda: MartConfig(game=GameConfig(num_exchanges=1, benign_prob=0.0, max_action_chars=3001)),
            "of at most 3000, got 3001",
        ),
        (lambda: RoundSettings(last_temperatures=(0.5, 0.0)), "last_temperatures above 0"),
        (lambda: RoundSettings(max_parents=0), "max_parents >= 1"),
        (lambda: SelectionSettings(kept_share=1.0), "kept_share in"),
        (lambda: EpochSettings(epochs=0.0), "epochs above 0"),
        (lambda: MartSeeds(count=-1), "count >= 0"),
        (lambda: InstructionSettings(count=-1), "count >= 0"),
        (lambda: mart.goals(MartConfig(heldout_seeds=5000)), "at least 5000 different seeds in the heldout half"),
    ],
)
def test_settings_outside_their_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_configs_survive_their_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'method = "mart"\nrounds = 3\n[mart.round]\nlast_temperatures = [1, 0.5]\npreprompt = ""\n'
        '[mart.selection]\nsource = "given"\n[mart.selection.thresholds]\ntheta_adv = 0.4\n'
    )
    config = registry.settings_from(tmp_path / "c.toml", {"seed": 3})
    assert config.mart.round == RoundSettings(last_temperatures=(1.0, 0.5), preprompt="")
    assert config.mart.selection.thresholds == MartThresholds(theta_adv=0.4)
    assert (config.seed, config.rounds) == (3, 3)
    (tmp_path / "c.toml").write_text('method = "mart"\n[mart.round]\nlast_temperatures = ["hot"]\n')
    with pytest.raises(ConfigError, match="expected a list of numbers"):
        registry.settings_from(tmp_path / "c.toml", {})


def test_goals_are_seeds_of_both_halves_in_the_papers_template() -> None:
    goals = mart.goals(MartConfig(mart=MartSettings(seeds=MartSeeds(count=0)), heldout_seeds=6))
    store = builtin_seeds()
    texts = {half: {seed.text.strip() for seed in store.split(half)} for half in ("train", "heldout")}
    assert len(goals.split("train")) == len(texts["train"])
    assert len(goals.split("heldout")) == 6
    by_id = {seed.id: seed for seed in store}
    for goal in goals:
        seed = by_id[goal.id]
        assert (goal.split, goal.category) == (seed.split, seed.category)
        assert goal.text == render_after(seed.category, seed.text.strip())
        assert is_one_shot(goal.text)


# What a run leaves behind


def test_a_run_leaves_every_attacker_and_target_behind(finished) -> None:
    found = finished.result
    assert [found.labels[name] for name in found.red] == ["base model", "A0", "A1", "A2"]
    assert [found.labels[name] for name in found.blue] == ["base model", "T1", "T2"]
    kinds = [read_member(finished.path / "population" / name.split("@")[0]).kind for name in found.red]
    assert kinds == ["one-shot-base", "one-shot", "one-shot", "one-shot"]
    assert len(found.oracle_gaps) == 3
    assert not [line for line in found.warnings if "MART" in line]
    assert "A2" in write_report(finished.path).read_text()


def test_rounds_are_of_the_newest_players_and_their_figures_stand_in_the_lineage(finished) -> None:
    with store_of(finished.path) as store:
        rounds = selected_rounds(store)
        for k in (1, 2):
            blocks = [store.block_data(name) for name in store.block_names() if name.startswith(f"mart/{k}/")]
            assert {(data["red"], data["blue"]) for data in blocks} == {(f"red_{k:02d}@v1", f"blue_{k - 1:02d}@v1")}
        second, first = round_in(store, 2), selected_parents(store, 1)
        assert {prompt.parent_id for prompt in second.prompts} == {parent.id for parent in first}
        assert 0 < len(first) <= 5
        assert not round_in(store, 0).answers  # thresholds are given
    for k in (1, 2):
        red, blue = (lineage_of(finished.path, f"{side}_{k + (side == 'red'):02d}") for side in ("red", "blue"))
        own = {key: value for key, value in rounds[k - 1].items() if key != "parents"}
        assert red["round"] == blue["round"] == own
        assert red["reference"] == f"red_{k:02d}@v1"
        assert blue["reference"] == ("base" if k == 1 else "blue_01@v1")
        assert red["num_rows"] == own["num_successes"] - own["num_copies"] + 2  # instructions
        assert blue["num_rows"] == own["num_lessons"] > 0


def test_the_last_round_alone_is_drawn_at_four_temperatures(finished) -> None:
    with store_of(finished.path) as store:
        drawn = [[found.answered[answer].temperature for answer in found.answers] for found in rounds_of(store)]
        assert drawn[0] == [0.7] * 8
        assert drawn[1] == [0.5, 0.7, 0.9, 1.1] * (2 * len(selected_parents(store, 1)))


def rounds_of(store: TranscriptStore):
    return [round_in(store, number) for number in (1, 2)]


# What is learned from


def test_red_learns_children_as_it_said_them_after_their_parents(finished, learned, backend) -> None:
    with store_of(finished.path) as store:
        found = round_in(store, 1)
    seeds = {goal.id: goal.text for goal in read_goals(finished.path)}
    rows = learned["red_02@v1"]
    said = {
        (found.said[p.id].prompt_ids, found.said[p.id].token_ids): tuple(
            backend.chat.encode(reading_seed(seeds[p.parent_id]))
        )
        for p in found.prompts
    }
    for row in rows[:-2]:
        begin, _ = row.spans[0]
        assert said[row.ids[:begin], row.sampled] == row.ids[:begin]
    assert rows[-2:] != rows[:2]
    assert all("similar question" not in backend.tokenizer.decode(list(row.ids)) for row in rows[-2:])


def test_safety_instructions_are_there_when_the_target_is_sampled_and_not_when_it_learns(
    finished, learned, backend
) -> None:
    preprompt = tiny_mart_config(finished.path).mart.round.preprompt
    with store_of(finished.path) as store:
        rounds = rounds_of(store)
    for k, found in enumerate(rounds, start=1):
        texts = {prompt.id: prompt.text for prompt in found.prompts}
        plain = {}
        for answer in found.answers:
            action = found.answered[answer]
            told = reading_of("blue", texts[answer.prompt_id], system_prompt=preprompt if k == 1 else "")
            assert action.prompt_ids == tuple(backend.chat.encode(told))
            read = tuple(backend.chat.encode(reading_of("blue", texts[answer.prompt_id])))
            plain[read, action.token_ids] = answer
        rows = learned[f"blue_{k:02d}@v1"]
        assert rows
        for row in rows:
            begin, _ = row.spans[0]
            assert plain[row.ids[:begin], row.sampled].safety > 0.98


def test_the_first_red_learns_pairs_of_training_seeds(finished, learned, backend) -> None:
    train = {seed.text.strip() for seed in builtin_seeds().split("train")}
    assert len(learned["red_01@v1"]) == 8
    for row in learned["red_01@v1"]:
        begin, _ = row.spans[0]
        read = backend.tokenizer.decode(list(row.ids[:begin]))
        assert any(f'"{text}" Write a similar question' in read for text in train)


# How it ends


def changed(folder: Path, **thresholds) -> dict:
    whole = tiny_mart_config(folder).mart
    found = replace(whole.selection.thresholds, **thresholds)
    return {"method": "mart", "mart": replace(whole, selection=replace(whole.selection, thresholds=found))}


def test_a_round_without_success_ends_the_run_cleanly(tiny_folder: Path, tmp_path: Path) -> None:
    outcome = run_here(tiny_folder, tmp_path, **changed(tiny_folder, theta_adv=-1.0, theta_safe=-1.0))
    found = outcome.result
    assert [found.labels[name] for name in found.red] == ["base model", "A0"]  # nothing to learn from
    assert [found.labels[name] for name in found.blue] == ["base model", "T1"]
    with store_of(outcome.path) as store:
        assert [data["end"] for data in selected_rounds(store)] == ["no prompt succeeded"]
        assert not round_in(store, 2).prompts
    assert any("MART ended after round 1 of 2: no prompt succeeded (0 of 8" in line for line in found.warnings)
    assert "no prompt succeeded" in write_report(outcome.path).read_text()


def test_few_violations_end_the_run_after_what_was_found_is_learned_but_not_under_safety_instructions(
    tiny_folder: Path, tmp_path: Path
) -> None:
    everything = changed(tiny_folder, theta_adv=2.0, theta_safe=2.0, stop_violation=1.0)
    outcome = run_here(tiny_folder, tmp_path, rounds=3, **everything)
    with store_of(outcome.path) as store:
        assert [data["end"] for data in selected_rounds(store)] == [None, "few enough violations"]
    found = outcome.result
    assert [found.labels[name] for name in found.red[1:]] == ["A0", "A1", "A2"]
    assert found.blue == ("blue_00@v1",)  # no answer was good enough, so that no target has learned
    assert any("MART ended after round 2 of 3: few enough violations" in line for line in found.warnings)


def test_thresholds_are_quantiles_of_the_answers_to_the_seeds(tiny_folder: Path, tmp_path: Path) -> None:
    whole = tiny_mart_config(tiny_folder).mart
    selection = SelectionSettings(thresholds=MartThresholds(theta_adv=0.7, stop_violation=0.0), kept_share=0.5)
    outcome = run_here(tiny_folder, tmp_path, method="mart", rounds=1, mart=replace(whole, selection=selection))
    with store_of(outcome.path) as store:
        zeroth = round_in(store, 0)
        wanted = thresholds_from_scores(zeroth.answers, kept_share=0.5, theta_adv=0.7, stop_violation=0.0)
        assert len(zeroth.answers) == 4 * 4
        used = selected_rounds(store)[0]["thresholds"]
    assert MartThresholds(**used) == wanted


# What it is worth


def test_an_evaluation_has_every_attacker_meet_every_target_the_base_model_being_the_first(
    finished, tmp_path: Path
) -> None:
    path = shutil.copytree(finished.path, tmp_path / "run")  # an evaluation is written into its run
    means = Means(progress=SilentProgress(), offline=True, judge=Consonants())
    settings = EvaluationSettings(attacks=4, responses=1, benign=2, embeddings="hashed")
    found = evaluate_seas_run(path, settings, means).figures
    assert (found.red, found.blue) == (("A0", "A1", "A2"), ("T0", "T1", "T2"))
    assert [len(row) for row in found.matrices[0].cells] == [3, 3, 3]
    assert [one.target for one in found.static] == ["T0", "T1", "T2"]
    assert "(A2, T2)" in write_report(path).read_text()


# A kill


@pytest.mark.parametrize(
    ("point", "num_kept"),
    [
        ("mart/1/0001", 1),  # within the first round
        ("member 4 after", 2),  # red has learned from a round, the target has not
    ],
)
def test_a_run_that_is_killed_goes_on_without_repeating_a_finished_parent(
    point: str, num_kept: int, finished, tiny_folder: Path, tmp_path: Path
) -> None:
    if point.startswith("mart/"):
        with store_of(finished.path) as store:
            point = f"commit {store.block_names().index(point) + 1} before"
    killed(tiny_folder, tmp_path, point, {"method": "mart"})
    with store_of(tmp_path / "run") as store:
        before = {name: store.block_data(name) for name in store.block_names() if name.startswith("mart/1/")}
    assert len(before) == num_kept
    run_here(tiny_folder, tmp_path, method="mart")
    with store_of(tmp_path / "run") as store:
        assert {name: store.block_data(name) for name in before} == before
        asked = Counter(prompt.parent_id for prompt in round_in(store, 1).prompts)
    assert sorted(asked.values()) == [2, 2, 2, 2]
    assert contents(tmp_path / "run") == contents(finished.path)
