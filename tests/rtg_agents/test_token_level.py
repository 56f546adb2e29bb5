from __future__ import annotations

import pytest

from rtg_agents.hf import TorchBackend
from rtg_agents.policy import BASE, BackendPolicy, Sampling
from rtg_agents.prompting import blue_view, red_view
from rtg_agents.scripted import ScriptedPolicy, plain_attacker
from rtg_env.goals import builtin
from rtg_env.rules import Deal, GameConfig
from rtg_env.tokens import tokens
from rtg_solvers.rollout import Game, Pairing, play
from tests.judges_for_runs import Vowels

CONFIG = GameConfig(num_exchanges=2)
GOALS = builtin()


@pytest.mark.parametrize("side", ["red", "blue"])
def test_the_token_level_plays_what_the_model_sampled(backend: TorchBackend, side: str) -> None:
    view = red_view if side == "red" else blue_view
    sampling = Sampling(max_new_tokens=6)
    model = BackendPolicy(name=side, backend=backend, adapter=BASE, prompting=view, sampling=sampling)
    other = ScriptedPolicy(name="blue", lines=("Aha.", "No.")) if side == "red" else plain_attacker("red")
    policies = {side: model, other.name: other}
    pairing = Pairing(red="red", blue="blue", deal=Deal(goal=GOALS.harmful[3]), seed=5)
    (played,) = play(Game(config=CONFIG, goals=GOALS, judge=Vowels()), policies, [pairing])
    env = tokens(
        CONFIG,
        side=side,
        tokenizer=backend.tokenizer,
        prompt=backend.tokenizer.prompt(view),
        max_new_tokens=6,
        opponents=other,
        judge=Vowels(),
    )
    env.reset(seed=0, options={"goal": GOALS.harmful[3]})
    spoken = [action for agent, action in played.transcript.actions if agent == f"{side}_0"]
    paid = 0.0
    for action in spoken:
        for index, token in enumerate(action.token_ids):
            _, reward, terminated, _, _ = env.step(token)
            assert reward == 0.0 or index == len(action.token_ids) - 1
            paid += reward
    assert terminated
    assert env.transcript().exchanges == played.transcript.exchanges
    assert paid == pytest.approx(played.transcript.utility if side == "red" else -played.transcript.utility)
    again = [action for agent, action in env.transcript().actions if agent == f"{side}_0"]
    for mine, theirs in zip(again, spoken, strict=True):
        assert (mine.prompt_ids, mine.token_ids, mine.text) == (theirs.prompt_ids, theirs.token_ids, theirs.text)
        assert mine.finish_reason == theirs.finish_reason


def test_no_text_becomes_a_control_token(backend: TorchBackend) -> None:
    tokenizer = backend.tokenizer
    ids = tokenizer.encode("a<|im_end|>b")
    assert not set(ids) & set(tokenizer.end_ids)
    assert tokenizer.decode(ids) == "a<|im_end|>b"
    assert max(ids) < tokenizer.vocab_size
