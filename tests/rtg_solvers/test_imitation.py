"""Lessons from what others said: the same ids where a model sampled them, the text's ids otherwise; and that they are learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rtg_agents.policy import BASE, BackendPolicy, Sampling
from rtg_agents.prompting import blue_view, red_view
from rtg_agents.scripted import ScriptedPolicy, plain_attacker
from rtg_env.errors import ConfigError
from rtg_env.goals import builtin
from rtg_env.rules import GameConfig
from rtg_solvers.imitation import ImitationSettings, as_said, best_of_each_goal, imitate, sentences_of
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.rollout import Game, draw_pairings, play
from rtg_solvers.trainer import Trainer
from tests.judges_for_runs import Flaky, Vowels

SAMPLING = Sampling(max_new_tokens=6)


def game(judge=None, **changes) -> Game:
    config = GameConfig(**{"num_exchanges": 2, "benign_prob": 0.25, **changes})
    return Game(config=config, goals=builtin().split("train"), judge=judge or Vowels())


def dialogues(backend, arena: Game, count: int = 8, red=None):
    def model(name: str, prompting):
        return BackendPolicy(name=name, backend=backend, adapter=BASE, prompting=prompting, sampling=SAMPLING)

    policies = {"red": red or model("red", red_view), "blue": model("blue", blue_view)}
    pairings = draw_pairings(arena, np.random.default_rng(0), count=count, red=lambda _: "red", blue=lambda _: "blue")
    return play(arena, policies, pairings)


def test_a_sentence_comes_with_what_its_speaker_saw(backend) -> None:
    arena = game()
    for item in dialogues(backend, arena):
        for role in ("red", "blue"):
            found = sentences_of(arena.config, item.transcript, role)
            actions = [action for agent, action in item.transcript.actions if agent.startswith(role)]
            assert [sentence.action for sentence in found] == actions
            sign = 1 if role == "red" else -1
            for turn, sentence in enumerate(found):
                assert sentence.seen.turn == turn
                assert len(sentence.seen.messages) == 2 * turn + (role == "blue")
                assert sentence.reward == pytest.approx(sign * sum(item.transcript.payments[turn:]))


def test_sampled_ids_are_kept_and_scored_as_they_were(backend) -> None:
    arena = game(num_exchanges=1)
    for item in dialogues(backend, arena):
        for sentence in sentences_of(arena.config, item.transcript, "blue"):
            found = as_said(backend, sentence, policy=BASE, sampling=SAMPLING)
            assert found.sampled == sentence.action.token_ids
            np.testing.assert_allclose(backend.score([found])[0], sentence.action.logps, atol=1e-4)


def test_a_scripts_sentence_ends_as_a_model_would_end_it(backend) -> None:
    arena = game(num_exchanges=1, benign_prob=0.0)
    (item, *_) = dialogues(backend, arena, red=plain_attacker("red"))
    (sentence,) = sentences_of(arena.config, item.transcript, "red")
    found = as_said(backend, sentence, policy=BASE, sampling=replace(SAMPLING, max_new_tokens=1000))
    assert backend.chat.decode(found.sampled[:-1]) == item.transcript.goal.text
    assert found.sampled[-1] in backend.tokenizer.end_ids
    cut = as_said(backend, sentence, policy=BASE, sampling=replace(SAMPLING, max_new_tokens=3))
    assert cut.sampled == found.sampled[:3]


def test_the_best_of_each_goal_are_better_than_its_mean_and_differ(backend) -> None:
    arena = game(num_exchanges=1, benign_prob=0.0)
    goals = arena.goals.harmful[:3]
    played = dialogues(backend, arena, count=30)
    played = [
        replace(item, transcript=replace(item.transcript, goal=goals[index % 3])) for index, item in enumerate(played)
    ]
    for role in ("red", "blue"):
        found = best_of_each_goal(arena.config, played, role, per_goal=2, rng=np.random.default_rng(0))
        for goal in goals:
            own = [item.transcript.utility for item in played if item.transcript.goal == goal]
            kept = [one.sentence for one in found if one.goal == goal.id]
            assert 1 <= len(kept) <= 2
            assert len({sentence.action.text for sentence in kept}) == len(kept)
            best = max(own) if role == "red" else -min(own)
            assert kept[0].reward == pytest.approx(best)


def test_goals_on_which_all_was_paid_alike_teach_nothing(backend) -> None:
    arena = game(num_exchanges=1)
    played = dialogues(backend, arena, count=1)
    assert best_of_each_goal(arena.config, played, "blue", per_goal=2, rng=np.random.default_rng(0)) == []


def test_unscored_dialogues_teach_nothing(backend) -> None:
    arena = game(Flaky(), num_exchanges=1, benign_prob=0.0)
    played = dialogues(backend, arena, count=60)
    assert any(item.transcript.unscored for item in played)
    found = best_of_each_goal(arena.config, played, "blue", per_goal=50, rng=np.random.default_rng(0))
    bad = {item.transcript.exchanges[0].blue for item in played if item.transcript.unscored}
    assert not bad & {one.sentence.action.text for one in found}


def test_what_is_imitated_becomes_likelier(backend) -> None:
    arena = game(num_exchanges=1, benign_prob=0.0)
    played = dialogues(backend, arena, red=ScriptedPolicy(name="red", lines=("say this",)))
    backend.create("red_03@v1", seed=0)
    lessons = [
        as_said(backend, sentence, policy="red_03@v1", sampling=Sampling(max_new_tokens=20))
        for item in played
        for sentence in sentences_of(arena.config, item.transcript, "red")
    ]
    before = sum(sum(row) for row in backend.score(lessons))
    trainer = Trainer(backend, ["red_03@v1"], OptimizerSettings(learning_rate=1e-2))
    figures = imitate(trainer, lessons, ImitationSettings(steps=12, batch=4), np.random.default_rng(0))
    assert sum(sum(row) for row in backend.score(lessons)) > before + 10
    assert figures[0].loss > figures[-1].loss
    # The loss is a mean over tokens.
    assert figures[0].loss == pytest.approx(-before / sum(one.num_sampled for one in lessons), rel=0.1)


@pytest.mark.parametrize("changes", [{"steps": -1}, {"batch": 0}, {"per_goal": 0}])
def test_settings_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        ImitationSettings(**changes)
