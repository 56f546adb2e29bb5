"""stable-baselines3 on the views: a vectorised environment for its learners, and what they learnt as a policy.

envs = as_vec_env(gymnasium.make_vec("RedTeam/Tactics-v0", num_envs=16, opponents=blue))
model = PPO("MlpPolicy", envs).learn(4096)
red = tactic_policy(model, name="red_03@v1", features=envs.features)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rtg_agents.tactics import Activation, Perceptron, TacticPolicy
from rtg_env.errors import ConfigError, MissingExtraError
from rtg_env.tactics import TacticFeatures, TacticsView
from rtg_env.vector import SeatVectorEnv, SlotStep

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise MissingExtraError("stable_baselines3", "rl") from error

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class SB3VecEnv(VecEnv):
    """A `SeatVectorEnv` as stable-baselines3 wants it: old dialogues end inside a step, infos are a list of dicts.

    A dialogue that was truncated (a limit, or a judge that kept failing) says `TimeLimit.truncated`, so that learners
    bootstrap there instead of learning a reward that nobody gave.

    Args:
        envs: With a Box, Discrete or Dict observation: tactics or tokens.
    """

    def __init__(self, envs: SeatVectorEnv) -> None:
        self.envs = envs  # before the base class asks it for its render mode
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)
        self._actions: Any = None

    @property
    def features(self) -> TacticFeatures:
        """Of a tactics environment, for `tactic_policy`.

        Raises:
            ConfigError: If it is another view.
        """
        if not isinstance(self.envs.view, TacticsView):
            raise ConfigError(f"expected RedTeam/Tactics-v0, got {type(self.envs.view).__name__}")
        return self.envs.view.features

    def reset(self) -> Any:
        """Observations of new dialogues; seeds and options given before are used once.

        Raises:
            ConfigError: If slots were given different options.
        """
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ConfigError("expected the same options for all dialogues, got different ones; give one dict")
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, told = self.envs.reset(seed=seeds, options=options)
        names = [name for name in told if not name.startswith("_")]  # _name says which slots have name: here all
        self.reset_infos = [{name: told[name][slot] for name in names} for slot in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Observations, rewards, ends and infos of the step."""
        steps = self.envs.step_slots(self._actions)
        dones = np.array([step.outcome.terminated or step.outcome.truncated for step in steps])
        rewards = np.array([step.outcome.reward for step in steps], dtype=np.float32)
        return self._stacked([step.observation for step in steps]), rewards, dones, [_info(step) for step in steps]

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, once per slot."""
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment, which all slots share."""
        del indices
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """A method's result for each slot; `action_masks` is what MaskablePPO asks for."""
        result = getattr(self.envs, method_name)(*args, **kwargs)
        chosen = list(self._get_indices(indices))
        return (
            [result[slot] for slot in chosen]
            if isinstance(result, list | tuple | np.ndarray)
            else [result] * len(chosen)
        )

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """No slot is."""
        return [False for _ in self._get_indices(indices)]

    def _stacked(self, observations: Sequence[Any]) -> Any:
        if isinstance(observations[0], dict):
            return {key: np.stack([seen[key] for seen in observations]) for key in observations[0]}
        return np.stack(observations)


def as_vec_env(envs: Any) -> SB3VecEnv:
    """A vectorised view, as `gymnasium.make_vec` returns it, for stable-baselines3.

    Raises:
        ConfigError: If it is no view of this package, one under a wrapper, or one whose observations are text.
    """
    if not isinstance(envs, SeatVectorEnv):
        raise ConfigError(
            f"expected an environment of gymnasium.make_vec('RedTeam/..'), got {type(envs).__name__}; "
            "wrappers of stable-baselines3 go around what as_vec_env returns"
        )
    if envs.single_action_space.__class__.__name__ != "Discrete":
        raise ConfigError(
            "expected discrete actions (RedTeam/Tactics-v0 or Tokens-v0); stable-baselines3 knows no text"
        )
    return SB3VecEnv(envs)


def tactic_policy(
    model: OnPolicyAlgorithm, *, name: str, features: TacticFeatures, max_action_chars: int = 2000
) -> TacticPolicy:
    """What an on-policy learner (PPO, A2C) with `MlpPolicy` learnt, as a policy of the game.

    Args:
        model: Trained on `RedTeam/Tactics-v0`.
        name: Version name.
        features: Of the environment it was trained on.
        max_action_chars: The game's limit.

    Raises:
        ConfigError: If its network is not a plain perceptron of these features and tactics.
    """
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import FlattenExtractor
    from torch import nn

    policy: Any = model.policy
    if type(policy) is not ActorCriticPolicy or type(policy.pi_features_extractor) is not FlattenExtractor:
        raise ConfigError(
            f"expected PPO or A2C with MlpPolicy and no features extractor of its own, got {type(model).__name__} "
            f"with {type(policy).__name__}"
        )
    if model.get_vec_normalize_env() is not None:
        raise ConfigError("expected a model that was trained on the features as they are, got one under VecNormalize")
    modules = [*policy.mlp_extractor.policy_net, policy.action_net]
    linear = [module for module in modules if isinstance(module, nn.Linear)]
    between = {type(module) for module in modules if not isinstance(module, nn.Linear)}
    known: dict[type, Activation] = {nn.Tanh: "tanh", nn.ReLU: "relu"}
    if len(between - set(known)) or len(between) > 1:
        raise ConfigError(
            f"expected linear layers with tanh or relu between them, got {[type(m).__name__ for m in modules]}"
        )
    arrays = [(m.weight.detach().cpu().double().numpy(), m.bias.detach().cpu().double().numpy()) for m in linear]
    weights, biases = zip(*arrays, strict=True)
    chooser = Perceptron(weights, biases, known[between.pop()] if between else "tanh")
    return TacticPolicy(name=name, features=features, chooser=chooser, max_action_chars=max_action_chars)


def _info(step: SlotStep) -> dict[str, Any]:
    if step.final_info is None:
        return {**step.info, "TimeLimit.truncated": False}
    ended = {"terminal_observation": step.final_obs, "TimeLimit.truncated": step.outcome.truncated}
    return {**step.final_info, **ended}
