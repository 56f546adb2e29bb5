"""A whole run on the tiny model, for tests: in this process, or in one that is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from rtg_agents.lora import LoraSettings
from rtg_agents.policy import Sampling
from rtg_agents.progress import SilentProgress
from rtg_env.rules import GameConfig
from rtg_solvers.attack_rewards import AttackRewardSettings
from rtg_solvers.mart_selection import MartThresholds
from rtg_solvers.methods import attackers
from rtg_solvers.methods.attackers import AttackConfig
from rtg_solvers.methods.common import RunConfig
from rtg_solvers.methods.grts import GRTSConfig
from rtg_solvers.methods.mart import MartConfig
from rtg_solvers.methods.seas import SeasConfig
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.oracles.gflownet import BehaviourSettings, GFlowNetSettings
from rtg_solvers.oracles.mart import (
    EpochSettings,
    InstructionSettings,
    MartSeeds,
    MartSettings,
    RoundSettings,
    SelectionSettings,
)
from rtg_solvers.oracles.ppo_novelty import PPONoveltySettings
from rtg_solvers.oracles.preference import PreferenceSettings
from rtg_solvers.oracles.rl import RLSettings
from rtg_solvers.oracles.seas import GeneralSettings, SeasSettings, StageSettings
from rtg_solvers.oracles.supervised import SafetySettings, SmoothingSettings, SupervisedSettings
from rtg_solvers.session import Outcome, run_method

GOAL_FILE = Path(__file__).resolve().parents[1] / "data/goals_for_runs.jsonl"
"""The first goals of each built-in category: a run's checks play every held-out one, most of its time with all of them."""


def tiny_config(folder: Path, **changes) -> GRTSConfig:
    settings = {
        "model": str(folder),
        "goals": str(GOAL_FILE),
        "judge": "tests.judges_for_runs:Vowels",
        "dialogues_per_cell": 8,
        "dialogues_per_gap": 8,
        "game": GameConfig(num_exchanges=1),
        "red_sampling": Sampling(max_new_tokens=6),
        "blue_sampling": Sampling(max_new_tokens=8),
        "lora": LoraSettings(rank=2, alpha=4.0),
        "rl": RLSettings(steps=2, dialogues_per_step=8, group_size=4, optimizer=OptimizerSettings(learning_rate=1e-2)),
    }
    return GRTSConfig(**{**settings, **changes})


def tiny_attack_config(folder: Path, **changes) -> AttackConfig:
    whole = tiny_config(folder)
    shared = {field.name: getattr(whole, field.name) for field in fields(RunConfig)}
    optimizer = OptimizerSettings(learning_rate=1e-2)
    reward = AttackRewardSettings(min_tokens=1)
    small = {"steps": 2, "groups": 2, "group_size": 2, "responses": 2, "reward": reward, "optimizer": optimizer}
    learning = SupervisedSettings(steps=2, batch=8, optimizer=optimizer)
    settings = {
        **shared,
        "embeddings": "hashed",
        "red_sampling": Sampling(max_new_tokens=6),
        "sft": learning,
        "gflownet": GFlowNetSettings(**small),
        "reinforce": GFlowNetSettings(
            **small, objective="leave-one-out", behaviour=BehaviourSettings(replay_share=0.0, hot_share=0.0)
        ),
        "ppo": PPONoveltySettings(steps=2, rollouts=4, epochs=2, optimizer=optimizer),
        "smoothing": SmoothingSettings(min_score=0.0, training=learning),
        "safety": SafetySettings(min_harm=0.1, batch=8, max_steps=2, optimizer=optimizer),
        "rl": whole.rl,
    }
    return AttackConfig(**{**settings, **changes})


def tiny_seas_config(folder: Path, **changes) -> SeasConfig:
    shared = {field.name: getattr(tiny_config(folder), field.name) for field in fields(RunConfig)}
    optimizer = OptimizerSettings(learning_rate=1e-2)
    preference = PreferenceSettings(epochs=1, batch=4, max_steps=2, heldout_share=0.25, optimizer=optimizer)
    learning = SupervisedSettings(steps=2, batch=4, optimizer=optimizer)
    settings = {
        **shared,
        "game": GameConfig(num_exchanges=1, benign_prob=0.0),
        "dialogues_per_cell": 4,
        "dialogues_per_gap": 4,
        "red_sampling": Sampling(temperature=0.8, max_new_tokens=6),
        "blue_sampling": Sampling(temperature=0.8, max_new_tokens=8),
        "iterations": 2,
        "heldout_seeds": 4,
        "seas": SeasSettings(
            stage=StageSettings(seeds=6, attacks=3, replies=3, block=2, unsafe_above=0.02),
            sft_rows=16,
            red_sft=learning,
            blue_sft=learning,
            red_preference=preference,
            blue_preference=preference,
            general=GeneralSettings(first=2, later=3),
        ),
    }
    return SeasConfig(**{**settings, **changes})


def tiny_mart_config(folder: Path, **changes) -> MartConfig:
    """About half of the tiny model's answers have a vowel and make their prompt a success; those without one are lessons."""
    shared = {field.name: getattr(tiny_config(folder), field.name) for field in fields(RunConfig)}
    optimizer = OptimizerSettings(learning_rate=1e-2)
    training = EpochSettings(batch=4, max_steps=2, optimizer=optimizer)
    thresholds = MartThresholds(theta_adv=0.98, theta_safe=0.98, theta_help=-1.0, stop_violation=0.0)
    settings = {
        **shared,
        "game": GameConfig(num_exchanges=1, benign_prob=0.0),
        "dialogues_per_cell": 4,
        "dialogues_per_gap": 4,
        "red_sampling": Sampling(temperature=0.7, max_new_tokens=6),
        "blue_sampling": Sampling(temperature=0.7, max_new_tokens=8),
        "rounds": 2,
        "heldout_seeds": 4,
        "mart": MartSettings(
            seeds=MartSeeds(count=4),
            round=RoundSettings(prompts=2, max_parents=5, block=2),
            selection=SelectionSettings(source="given", thresholds=thresholds),
            warm_rows=8,
            warm_start=SupervisedSettings(steps=2, batch=4, optimizer=optimizer),
            red_training=training,
            blue_training=training,
            instructions=InstructionSettings(count=2),
        ),
    }
    return MartConfig(**{**settings, **changes})


def run_here(folder: Path, runs: Path, **changes) -> Outcome:
    """With another method than GRTS's among the changes, that one's tiny config."""
    makers = {
        **dict.fromkeys(attackers.METHODS, tiny_attack_config),
        "seas": tiny_seas_config,
        "mart": tiny_mart_config,
    }
    make = makers.get(str(changes.get("method")), tiny_config)
    return run_method(make(folder, **changes), runs=runs, name="run", progress=SilentProgress(), offline=True)


def run_until_killed(folder: Path, runs: Path, point: str, changes: Mapping[str, Any] | None = None) -> None:
    """Play until a point such as `commit 3 before` or `checkpoint 1 after`, then die by SIGKILL."""
    kind, number, moment = point.split()
    if kind == "commit":
        from rtg_env.transcripts import TranscriptStore as owner

        name = "put_block"
    elif kind == "checkpoint":
        from rtg_solvers.trainer import Trainer as owner

        name = "save"
    elif kind == "adapter":
        from rtg_agents.hf import TorchBackend as owner

        name = "save_adapter"
    elif kind == "network":
        from rtg_solvers.tactic_trainer import TacticTrainer as owner

        name = "save"
    else:
        from rtg_agents.population import Population as owner

        name = "add"
    original, seen = getattr(owner, name), [0]

    def deadly(self, *args, **kwargs):
        seen[0] += 1
        if seen[0] == int(number) and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        value = original(self, *args, **kwargs)
        if seen[0] == int(number) and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    setattr(owner, name, deadly)
    run_here(folder, runs, **(changes or {}))


def killed(folder: Path, runs: Path, point: str, changes: Mapping[str, Any] | None = None) -> None:
    """A run in a process of its own that dies at a point, as `run_until_killed` has it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rtg_solvers.runs", "peft", "transformers"])
    process = context.Process(target=run_until_killed, args=(folder, runs, point, changes))
    process.start()
    process.join(400)
    assert process.exitcode == -signal.SIGKILL
