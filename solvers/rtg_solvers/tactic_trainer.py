"""stable-baselines3's PPO on `RedTeam/Tactics-v0`, update by update: what `rtg_solvers.oracles.tactics` trains with.

An update is a pure function of the network, the optimizer and the update's number: it deals new dialogues, and its
random streams are its own. stable-baselines3 draws from global generators; they are reseeded while it works and then put
back. Checkpoints hold arrays alone: nothing that can run code when it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from rtg_agents.sb3 import as_vec_env, tactic_policy
from rtg_agents.tactics import TacticPolicy
from rtg_env.files import whole_file
from rtg_env.global_random import disturbed_global_random
from rtg_env.judges.base import Encoder
from rtg_env.table import Pool
from rtg_env.tactics import tactics_vector
from rtg_env.transcripts import Played
from rtg_env.types import role_of
from rtg_solvers.rollout import Game, fresh_memory
from rtg_solvers.seeding import draw_seed, rng_for

if TYPE_CHECKING:
    from rtg_solvers.oracles.tactics import TacticSettings

_LOG = logging.getLogger(__name__)
_UPDATES = "updates_done"


@dataclass(frozen=True, slots=True, kw_only=True)
class TacticUpdate:
    """What one update was made of, and what it did."""

    played: tuple[Played, ...]
    """Its dialogues, those that a judge failed on included."""

    entropy: float
    """Of the choice of a tactic while it was updated, in nats."""

    value_loss: float
    """Mean squared error of the value network's predictions."""


class TacticTrainer:
    """Trains one network over tactics.

    Args:
        game: Rules, training goals, judge.
        blue: Whom it plays, one drawn per dialogue.
        settings: Of PPO.
        encoder: What the network reads of texts.
        version: Name of the policy in training.
        seed: Of the run.
        key: Names this piece of work among those of the run.
    """

    def __init__(
        self,
        game: Game,
        blue: Pool,
        settings: TacticSettings,
        *,
        encoder: Encoder,
        version: str,
        seed: int,
        key: tuple[str | int, ...],
    ) -> None:
        from stable_baselines3 import PPO
        from stable_baselines3.common.logger import Logger

        self._game, self._blue, self._version = game, blue, version
        self._seed, self._key = seed, key
        self._envs = as_vec_env(
            tactics_vector(
                settings.num_envs,
                game.config,
                opponents={"blue": blue},
                goals=game.goals,
                judge=game.judge,
                encoder=encoder,
            )
        )
        sentences = settings.steps * game.config.num_exchanges
        with _private_random(rng_for(seed, *key, "start")):
            self._model = PPO(
                "MlpPolicy",
                self._envs,
                n_steps=sentences,
                batch_size=sentences * settings.num_envs // settings.batches,
                n_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                clip_range=settings.clip,
                ent_coef=settings.entropy_weight,
                gae_lambda=settings.trace_decay,
                gamma=1.0,
                device="cpu",
            )
        # Its own logger would write into a folder of its choice.
        self._model.set_logger(Logger(folder=None, output_formats=[]))
        self._sentences = sentences * settings.num_envs
        self.updates_done = 0

    def update(self) -> TacticUpdate:
        """Play the dialogues of the next update, and learn from them."""
        rng = rng_for(self._seed, *self._key, self.updates_done)
        self._envs.seed(draw_seed(rng) >> 1)  # slots add their index to it
        played: list[Played] = []

        def keep(*_: object) -> bool:
            played.extend(self._envs.envs.played())
            return True

        speakers = {policy.name: policy for policy in self._blue.policies}
        with fresh_memory(speakers), _private_random(rng):
            # Counting steps anew makes it reset the environment; this is one iteration of its own, and never logged.
            self._model.learn(self._sentences, callback=keep, log_interval=2, reset_num_timesteps=True)
        self.updates_done += 1
        figures = self._model.logger.name_to_value
        return TacticUpdate(
            played=tuple(self._named(item) for item in played),
            entropy=-float(figures["train/entropy_loss"]),
            value_loss=float(figures["train/value_loss"]),
        )

    def policy(self) -> TacticPolicy:
        """What was learnt so far."""
        limit = self._game.config.max_action_chars
        return tactic_policy(self._model, name=self._version, features=self._envs.features, max_action_chars=limit)

    def save(self, file: Path) -> None:
        """Write the network, the optimizer and how many updates were made.

        Raises:
            RunError: If it cannot be written; what stood there before stays.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"network/{name}": tensor for name, tensor in self._model.policy.state_dict().items()}
        for index, moments in self._model.policy.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": tensor for name, tensor in moments.items()}
        tensors[_UPDATES] = torch.tensor(self.updates_done)
        with whole_file(file) as handle:
            handle.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def resume(self, file: Path) -> bool:
        """Go on from a checkpoint, exactly; False if there is none, or it is damaged: training then begins anew."""
        if not file.is_file():
            return False
        network, optimizer = self._model.policy, self._model.policy.optimizer
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        try:
            tensors = load(file.read_bytes())
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("adam/"):
                    _, index, moment = name.split("/")
                    moments.setdefault(int(index), {})[moment] = tensor
            network.load_state_dict({name: tensors[f"network/{name}"] for name in before})
            done = int(tensors[_UPDATES])
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            _LOG.warning("%s is damaged (%s): training begins anew, played dialogues are kept", file, error)
            network.load_state_dict(before)
            return False
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        self.updates_done = done
        return True

    def _named(self, item: Played) -> Played:
        """The dialogue as one of the policy in training; the environment calls it the learner."""
        actions = tuple(
            (agent, replace(action, policy=self._version) if role_of(agent) == "red" else action)
            for agent, action in item.transcript.actions
        )
        return replace(item, red=self._version, transcript=replace(item.transcript, actions=actions))


@contextmanager
def _private_random(rng: np.random.Generator) -> Iterator[None]:
    """Reseed the global generators that stable-baselines3 draws from; they go on afterwards as if nothing had happened."""
    generator: Any = torch.default_generator
    kept = generator.get_state()
    try:
        with disturbed_global_random(int(rng.integers(2**32))):
            generator.manual_seed(draw_seed(rng))
            yield
    finally:
        generator.set_state(kept)
