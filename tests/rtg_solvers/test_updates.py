"""Clipped steps on credited sentences, against loops over single sentences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rtg_agents.policy import TokenSequence
from rtg_env.errors import ConfigError
from rtg_solvers.advantages import paid_until_the_next, returns_to_go
from rtg_solvers.lessons import Lessons, Sentence
from rtg_solvers.losses import Clipping
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.rl import RLSettings
from rtg_solvers.trainer import Trainer
from rtg_solvers.updates import clipped_steps, reinforce, sentence_values
from tests.adapters import shake

STEP = OptimizerSettings(learning_rate=1e-2, max_grad_norm=1e9)


@pytest.fixture
def learner(backend):
    backend.create("red", seed=0)
    shake(backend, "red", 0)
    return backend


def two_dialogues(backend, *, shift: float = 0.0) -> Lessons:
    """Two sentences in the first, one in the second; sampled by the policy as it is, up to a shift."""
    first = TokenSequence(policy="red", ids=(1, 40, 41, 42, 50, 51, 43, 44), spans=((2, 4), (6, 8)))
    second = TokenSequence(policy="red", ids=(1, 60, 61, 62), spans=((1, 4),))
    logps = [tuple(value + shift for value in row) for row in backend.score([first, second])]
    return Lessons(
        (first, second),
        (
            Sentence(0, 2, sum(logps[0][:2]), 0.6, (0, 0), 0, logps[0][:2]),
            Sentence(0, 2, sum(logps[0][2:]), 0.2, (0, 1), 0, logps[0][2:]),
            Sentence(1, 3, sum(logps[1]), 0.4, (0, 0), 1, logps[1]),
        ),
        0.0,
    )


def values_of(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer._parameters["red"].values()]


def gradients(backend) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in backend.parameters("red").values() if p.grad is not None])


def test_places_tables_and_first_ids_by_hand(learner) -> None:
    lessons = two_dialogues(learner)
    assert lessons.places == [(0, slice(0, 2)), (0, slice(2, 4)), (1, slice(0, 3))]
    assert lessons.first_ids.tolist() == [[True, False, True, False], [True, False, False, False]]
    assert lessons.sampled_logps[0].tolist() == pytest.approx(learner.score(lessons.sequences[:1])[0])
    assert lessons.sampled_logps[1, 3] == 0.0


def test_what_was_paid_is_the_inverse_of_returns_to_go() -> None:
    paid, dialogues = np.array([0.5, 0.0, 0.25, 1.0, -1.0]), ["a", "b", "a", "a", "b"]
    assert paid_until_the_next(returns_to_go(paid, dialogues), dialogues) == pytest.approx(paid)
    assert paid_until_the_next(np.array([0.6, 0.2, 0.4]), [0, 0, 1]) == pytest.approx([0.4, 0.2, 0.4])


def test_a_first_clipped_step_is_reinforce(learner) -> None:
    advantages = np.array([1.0, -0.5, 0.25])
    found = []
    for step in (
        lambda trainer, lessons: reinforce(trainer, lessons, advantages),
        lambda trainer, lessons: clipped_steps(trainer, lessons, advantages, Clipping(), epochs=1),
    ):
        step(Trainer(learner, ["red"], OptimizerSettings(learning_rate=0.0, max_grad_norm=1e9)), two_dialogues(learner))
        found.append(gradients(learner))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_sentences_far_from_where_they_were_sampled_teach_nothing_more(learner) -> None:
    # Sampled 1 nat less probable than now: every ratio is e, beyond 1.2, and a positive advantage pulls no further.
    lessons = two_dialogues(learner, shift=-1.0)
    trainer = Trainer(learner, ["red"], STEP)
    before = values_of(trainer)
    figures = clipped_steps(trainer, lessons, np.array([1.0, 2.0, 0.5]), Clipping(), epochs=1)
    assert figures.grad_norm == 0.0
    assert figures.loss == pytest.approx(-1.2 * (2 * 1.0 + 2 * 2.0 + 3 * 0.5) / 3, rel=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(before, values_of(trainer), strict=True))


def test_averaging_over_ids_gives_long_sentences_no_more_weight(learner) -> None:
    lessons = two_dialogues(learner, shift=-1.0)
    trainer = Trainer(learner, ["red"], STEP)
    figures = clipped_steps(trainer, lessons, np.array([1.0, 2.0, 0.5]), Clipping(), epochs=1, mean_over_tokens=True)
    assert figures.loss == pytest.approx(-1.2 * (1.0 + 2.0 + 0.5) / 3, rel=1e-5)


def test_value_heads_learn_the_returns_of_first_ids_only(learner) -> None:
    lessons = two_dialogues(learner)
    trainer = Trainer(learner, ["red"], OptimizerSettings(learning_rate=3e-2), values=True)
    returns = np.array([0.6, 0.2, 0.4])
    assert sentence_values(trainer, lessons).tolist() == [0.0, 0.0, 0.0]
    first = clipped_steps(trainer, lessons, np.zeros(3), Clipping(), epochs=1, returns_N=returns, value_weight=2.0)
    assert first.loss == pytest.approx(2.0 * 0.5 * (0.36 + 0.04 + 0.16) / 3, rel=1e-5)
    clipped_steps(trainer, lessons, np.zeros(3), Clipping(), epochs=60, returns_N=returns)
    assert sentence_values(trainer, lessons) == pytest.approx(returns, abs=0.05)


def test_every_epoch_is_a_step_and_micro_batches_change_nothing(learner) -> None:
    found = []
    for micro in (1, 8):
        name = f"micro{micro}"
        learner.bank.copy("red", name)
        lessons = two_dialogues(learner)
        renamed = Lessons(
            tuple(TokenSequence(policy=name, ids=s.ids, spans=s.spans) for s in lessons.sequences),
            lessons.sentences,
            0.0,
        )
        settings = OptimizerSettings(learning_rate=1e-2, micro_batch=micro)
        trainer = Trainer(learner, [name], settings, values=True)
        clipped_steps(
            trainer, renamed, np.array([1.0, -1.0, 0.5]), Clipping(), epochs=3, returns_N=np.array([0.6, 0.2, 0.4])
        )
        assert trainer.steps_done == 3
        found.append(torch.cat([p.detach().flatten() for p in learner.parameters(name).values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epochs": 2}, "1 for leave-one-out"),
        ({"epochs": 0, "estimator": "ppo"}, "epochs >= 1"),
        ({"trace_decay": 1.5}, "trace_decay in"),
        ({"value_weight": -1.0}, "value_weight must be"),
        ({"kl_weight": float("nan")}, "kl_weight must be"),
    ],
)
def test_settings_that_make_no_estimator_are_refused(settings, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        RLSettings(**settings)
