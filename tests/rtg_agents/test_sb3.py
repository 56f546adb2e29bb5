from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from rtg_agents import Perceptron, TacticPolicy
from rtg_agents.sb3 import SB3VecEnv, as_vec_env, tactic_policy
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError, MissingExtraError
from rtg_env.limits import Limits
from rtg_env.rules import Deal, GameConfig
from rtg_env.tactics import Tactic
from rtg_env.testing.games import plain
from rtg_env.types import Action, Case, Observation, Verdict
from rtg_solvers.measures import Estimate, mean_estimate
from rtg_solvers.rollout import Game, Pairing, play
from tests.doubles import GOALS, HARMFUL, OTHER, RaisingJudge, TextJudge, failed, verdict
from tests.speakers import Talker

TACTICS = tuple(Tactic(name=name, template=f"{name}: {{goal}}") for name in ("Please", "Joke", "Play", "Hurry"))
SMALL: dict[str, Any] = {"n_steps": 8, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(num_envs: int = 4, view: str = "Tactics", **changes: Any) -> Any:
    own = {"tactics": TACTICS, "encoder": HashingEncoder(2)} if view == "Tactics" else {}
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **own, **changes}
    return gymnasium.make_vec(f"RedTeam/{view}-v0", num_envs=num_envs, **given)


def vec(num_envs: int = 4, **changes: Any) -> SB3VecEnv:
    return as_vec_env(made(num_envs, **changes))


def weights(model: BaseAlgorithm) -> list[np.ndarray]:
    return [parameter.detach().numpy() for parameter in model.policy.parameters()]


# The environment as stable-baselines3 wants it


@pytest.mark.parametrize("view", ["Tactics", "Tokens"])
def test_stable_baselines3_finds_nothing_to_complain_about(view: str) -> None:
    env = gymnasium.make(f"RedTeam/{view}-v0", goals=GOALS, judge=TextJudge(), opponents=Talker())
    check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("settings", [{}, {"num_red": 2}, {"limits": Limits(calls=3)}], ids="-".join)
@pytest.mark.parametrize("view", ["Tactics", "Tokens"])
def test_it_steps_as_the_vectors_of_stable_baselines3_do(view: str, settings: dict[str, Any]) -> None:
    """Their DummyVecEnv over single environments is the reference."""
    own = {"tactics": TACTICS, "encoder": HashingEncoder(2)} if view == "Tactics" else {"max_new_tokens": 3}
    given = {"goals": GOALS, "judge": TextJudge(), "opponents": Talker(), **own, **settings}

    def single() -> Any:
        return gymnasium.make(f"RedTeam/{view}-v0", **given).unwrapped

    ours, theirs = vec(3, view=view, **own, **settings), DummyVecEnv([single] * 3)
    for each in (ours, theirs):
        each.seed(11)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert plain(ours.reset()) == plain(theirs.reset())
    assert plain(ours.reset_infos) == plain(theirs.reset_infos)
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(ours.action_space.n, size=3)
        step, other = ours.step(actions), theirs.step(actions)
        assert plain(step) == plain(other)
        assert (step[1].dtype, step[2].dtype) == (other[1].dtype, other[2].dtype)
        if isinstance(step[0], np.ndarray):
            assert step[0].dtype == other[0].dtype


def test_the_end_of_a_dialogue_is_seen_before_the_next_one_begins() -> None:
    envs = vec(2, num_exchanges=1)
    envs.seed(0)
    first = envs.reset()
    second, rewards, dones, infos = envs.step(np.array([1, 2]))
    assert dones.all()
    assert rewards.dtype == np.float32
    for slot, info in enumerate(infos):
        assert info["terminal_observation"][4] == 1.0  # all of the dialogue is over
        assert second[slot][4] == first[slot][4] == 0.0
        assert info["TimeLimit.truncated"] is False
        assert info["utility"] == pytest.approx(rewards[slot])


def test_a_limit_says_that_it_was_one() -> None:
    envs = vec(1, num_exchanges=3, limits=Limits(calls=2))
    envs.reset()
    _, _, dones, infos = envs.step(np.array([0]))
    assert dones.tolist() == [True]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["terminal_observation"][4] == np.float32(1 / 3)


def test_seeds_are_used_once() -> None:
    envs = vec(2)
    envs.seed(5)
    first = envs.reset()
    assert not np.array_equal(envs.reset(), first)
    envs.seed(5)
    assert np.array_equal(envs.reset(), first)


def test_options_are_used_once_and_are_those_of_all() -> None:
    envs = vec(6)
    envs.set_options({"goal_id": "o"})
    envs.reset()
    assert {info["goal_id"] for info in envs.reset_infos} == {OTHER.id}
    envs.seed(0)
    envs.reset()
    assert {info["goal_id"] for info in envs.reset_infos} == {OTHER.id, HARMFUL.id}
    envs.set_options([{"goal_id": "o"}, *[{}] * 5])
    with pytest.raises(ConfigError, match="expected the same options for all dialogues"):
        envs.reset()


def test_masks_and_attributes_come_slot_by_slot() -> None:
    envs = vec(3, tactics=(*TACTICS, Tactic(name="later", template="x", first_turn=1)))
    envs.reset()
    envs.step(np.array([0, 0, 0]))
    masks = envs.env_method("action_masks")
    assert [mask.tolist() for mask in masks] == [[True] * 5] * 3
    assert [mask.tolist() for mask in envs.env_method("action_masks", indices=[1])] == [[True] * 5]
    assert [len(transcript.exchanges) for transcript in envs.env_method("transcripts")] == [1, 1, 1]
    assert envs.get_attr("num_envs") == [3, 3, 3]
    assert envs.has_attr("action_masks")
    assert not envs.has_attr("nothing_like_it")
    envs.set_attr("note", 7)
    assert envs.get_attr("note", indices=0) == [7]
    assert envs.env_is_wrapped(VecMonitor) == [False] * 3
    envs.close()


def test_a_monitor_counts_sentences_and_pay() -> None:
    envs = VecMonitor(vec(2, num_exchanges=2))
    envs.seed(0)
    envs.reset()
    _, first, _, _ = envs.step(np.array([0, 1]))
    _, second, dones, infos = envs.step(np.array([0, 1]))
    assert dones.all()
    assert [info["episode"]["l"] for info in infos] == [2, 2]
    assert [info["episode"]["r"] for info in infos] == pytest.approx(first + second)
    assert [info["episode"]["r"] for info in infos] == pytest.approx([info["utility"] for info in infos])
    assert envs.features.size == 12


@pytest.mark.parametrize("view", ["Attack", "Defend"])
def test_views_of_text_are_refused(view: str) -> None:
    with pytest.raises(ConfigError, match=r"expected discrete actions .*; stable-baselines3 knows no text"):
        as_vec_env(made(view=view))


def test_what_is_no_vector_of_ours_is_refused() -> None:
    single = gymnasium.make("RedTeam/Tactics-v0", goals=GOALS, judge=TextJudge())
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(made())
    for envs in (single, gymnasium.make_vec("CartPole-v1", num_envs=2), wrapped, None):
        with pytest.raises(ConfigError, match=r"expected an environment of gymnasium.make_vec\('RedTeam/..'\), got"):
            as_vec_env(envs)


def test_only_tactics_have_features() -> None:
    with pytest.raises(ConfigError, match="expected RedTeam/Tactics-v0, got TokensView"):
        _ = vec(view="Tokens").features


def test_without_stable_baselines3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    monkeypatch.delitem(sys.modules, "rtg_agents.sb3")
    with pytest.raises(MissingExtraError, match=r'"\.\[rl\]"') as caught:
        importlib.import_module("rtg_agents.sb3")
    assert (caught.value.package, caught.value.extra) == ("stable_baselines3", "rl")


# Learners


def steps_of(algorithm: Any, envs: Any, **settings: Any) -> Any:
    return algorithm("MlpPolicy", envs, seed=3, device="cpu", **settings).learn(96)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (PPO, {"n_steps": 8, "batch_size": 16, "n_epochs": 2}),
        (A2C, {"n_steps": 4}),
        (DQN, {"learning_starts": 16, "train_freq": 2, "batch_size": 16, "buffer_size": 256}),
    ],
    ids=["PPO", "A2C", "DQN"],
)
def test_learners_learn_and_the_seed_decides_what(algorithm: Any, settings: dict[str, Any]) -> None:
    one, two = (steps_of(algorithm, vec(), **settings) for _ in range(2))
    fresh = algorithm("MlpPolicy", vec(), seed=3, device="cpu", **settings)
    assert all(map(np.array_equal, weights(one), weights(two)))
    assert not all(map(np.array_equal, weights(one), weights(fresh)))


def test_ppo_runs_on_tokens() -> None:
    envs = vec(view="Tokens", max_new_tokens=4, context=8)
    model = PPO("MultiInputPolicy", envs, policy_kwargs={"net_arch": [4]}, **SMALL).learn(64)
    assert model.num_timesteps == 64


def test_a_model_is_evaluated_by_stable_baselines3() -> None:
    model = PPO("MlpPolicy", vec(), **SMALL)
    mean, _ = evaluate_policy(model, VecMonitor(vec(2)), n_eval_episodes=4)
    assert 0.0 <= mean <= 1.0


class Kept(BaseCallback):
    """Rewards of the steps as learnt, and what was bootstrapped in each."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[np.ndarray] = []
        self.learnt: np.ndarray | None = None
        self.unscored: list[list[bool]] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        rows = []
        for info in infos:
            seen = info.get("terminal_observation")
            bootstrapped = seen is not None and info["TimeLimit.truncated"]
            with torch.no_grad():
                value = self.model.policy.predict_values(torch.as_tensor(seen)[None]).item() if bootstrapped else 0.0
            rows.append(value)
        self.values.append(np.array(rows))
        self.unscored.append([info["unscored"] for info in infos])
        return True

    def _on_rollout_end(self) -> None:
        self.learnt = self.model.rollout_buffer.rewards.copy()


class FailsOn:
    """Fails on the second exchange of some dialogues; all else is worth 1."""

    judge_id = "fails-on@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [failed() if len(c.exchanges) == 2 and c.goal.id == "h" else verdict(1.0) for c in cases]


def test_what_nobody_judged_is_no_reward_but_the_value_of_going_on() -> None:
    kept = Kept()
    envs = vec(8, judge=FailsOn(), num_exchanges=2, aggregate="mean")
    PPO("MlpPolicy", envs, gamma=0.9, **SMALL).learn(64, callback=kept)
    unscored, values = np.array(kept.unscored), np.array(kept.values)
    assert 0 < unscored.sum() < unscored.size
    assert kept.learnt is not None
    assert kept.learnt[unscored] == pytest.approx(0.9 * values[unscored], abs=1e-6)
    assert (kept.learnt[~unscored] == 0.5).all()


def test_a_judge_that_never_answers_pays_nothing() -> None:
    envs = vec(3, judge=RaisingJudge())
    envs.reset()
    for _ in range(4):
        _, rewards, dones, infos = envs.step(np.array([0, 1, 2]))
        assert rewards.tolist() == [0.0] * 3
        assert dones.all()
        assert all(info["TimeLimit.truncated"] and info["unscored"] and "utility" not in info for info in infos)


# What was learnt, as a policy


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
@pytest.mark.parametrize("net_arch", [[], [8, 8], {"pi": [5], "vf": [3, 3]}], ids=str)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_policy_has_the_probabilities_of_its_model(algorithm: Any, net_arch: Any, activation: Any) -> None:
    envs = vec(8)
    kwargs = {"net_arch": net_arch, "activation_fn": activation}
    model = algorithm("MlpPolicy", envs, policy_kwargs=kwargs, n_steps=8, learning_rate=0.01, seed=0, device="cpu")
    model.learn(64)
    red = tactic_policy(model, name="red_01", features=envs.features, max_action_chars=77)
    rows = np.random.default_rng(0).uniform(-1, 1, size=(50, envs.features.size)).astype(np.float32)
    with torch.no_grad():
        probs = model.policy.get_distribution(torch.as_tensor(rows)).distribution.probs.numpy()
    assert np.abs(red.chooser(rows) - probs).max() < 1e-6
    assert np.ptp(probs, axis=0).max() > 0.01
    assert red.max_action_chars == 77
    assert isinstance(red.chooser, Perceptron)
    assert red.chooser.activation == ("relu" if activation is torch.nn.ReLU and net_arch else "tanh")


def test_what_was_learnt_later_does_not_change_a_policy() -> None:
    envs = vec()
    model = PPO("MlpPolicy", envs, **SMALL)
    red = tactic_policy(model, name="red_01", features=envs.features)
    rows = np.ones((1, envs.features.size))
    before = red.chooser(rows)
    model.learn(64)
    assert np.array_equal(red.chooser(rows), before)


class Own(FlattenExtractor):
    """Something else between the numbers and the network."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return -super().forward(observations)


@pytest.mark.parametrize(
    ("kwargs", "found"),
    [
        (
            {"activation_fn": torch.nn.ELU},
            r"expected linear layers with tanh or relu between them, got \['Linear', 'ELU'",
        ),
        ({"features_extractor_class": Own}, "no features extractor of its own, got PPO with ActorCriticPolicy"),
    ],
)
def test_a_network_that_is_no_plain_perceptron_is_refused(kwargs: dict[str, Any], found: str) -> None:
    envs = vec()
    with pytest.raises(ConfigError, match=found):
        tactic_policy(PPO("MlpPolicy", envs, policy_kwargs=kwargs, **SMALL), name="x", features=envs.features)


def test_models_of_other_kinds_are_refused() -> None:
    envs = vec()
    normalised = PPO("MlpPolicy", VecNormalize(vec()), **SMALL)
    with pytest.raises(ConfigError, match="got one under VecNormalize"):
        tactic_policy(normalised, name="x", features=envs.features)
    with pytest.raises(ConfigError, match=r"expected PPO or A2C with MlpPolicy .*, got DQN with DQNPolicy"):
        tactic_policy(DQN("MlpPolicy", envs, buffer_size=8, device="cpu"), name="x", features=envs.features)  # type: ignore[arg-type]  # the point
    tokens = PPO("MultiInputPolicy", vec(view="Tokens", context=8), **SMALL)
    with pytest.raises(ConfigError, match="got PPO with MultiInputActorCriticPolicy"):
        tactic_policy(tokens, name="x", features=envs.features)


def test_a_model_of_other_features_is_refused() -> None:
    model = PPO("MlpPolicy", vec(), **SMALL)
    for changes in ({"encoder": HashingEncoder(3)}, {"tactics": TACTICS[:3]}):
        with pytest.raises(ConfigError, match=r"expected a network of .* features and .* tactics, got"):
            tactic_policy(model, name="x", features=vec(**changes).features)


# Learning


class OnceBitten:
    """Falls for a joke and for a play, once each in a dialogue, and for nothing else."""

    name = "once-bitten"

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        del seeds
        return [Action(text=self._answer(observation)) for observation in observations]

    def _answer(self, observation: Observation) -> str:
        *before, asked = [text.split(":")[0] for role, text in observation.messages if role == "user"]
        return "Sure." if asked in ("Joke", "Play") and asked not in before else "No."


class SureJudge:
    judge_id = "sure@1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [verdict(float(case.exchange.blue == "Sure.")) for case in cases]


def wins(red: TacticPolicy, game: Game) -> Estimate:
    pairings = [Pairing(red="red", blue="blue", deal=Deal(HARMFUL), seed=seed) for seed in range(200)]
    played = play(game, {"red": red, "blue": OnceBitten()}, pairings)
    numbers = [item.transcript.utility for item in played]
    return mean_estimate(numbers, [str(item.seed) for item in played], bounds=(0.0, 1.0), confidence=0.99)


def test_ppo_learns_to_mix_and_beats_every_single_tactic() -> None:
    # A single tactic works once in two exchanges: 0.5. Chance: (1/2 + 1/2 - 1/8) / 2 = 0.4375. First one, then the
    # other: 1.
    game = Game(config=GameConfig(num_exchanges=2, aggregate="mean"), goals=GOALS, judge=SureJudge())
    envs = vec(16, config=game.config, judge=game.judge, opponents=OnceBitten())
    model = PPO(
        "MlpPolicy", envs, n_steps=32, batch_size=128, learning_rate=3e-3, gamma=1.0, seed=0, device="cpu",
        policy_kwargs={"net_arch": [16]},
    )  # fmt: skip
    untrained = wins(tactic_policy(model, name="red_00", features=envs.features), game)
    learnt = wins(tactic_policy(model.learn(6144), name="red_01", features=envs.features), game)
    networks = [Perceptron.always(index, 4, envs.features.size) for index in range(4)]
    fixed = [wins(TacticPolicy(name="one", features=envs.features, chooser=network), game) for network in networks]
    assert [estimate.mean for estimate in fixed] == [0.0, 0.5, 0.5, 0.0]
    assert learnt.low > 0.8 > max(estimate.high for estimate in fixed)
    assert learnt.low > untrained.high
