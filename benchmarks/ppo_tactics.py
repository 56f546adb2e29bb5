"""PPO on `RedTeam/Tactics-v0` against a real model: does choosing tactics beat the best single one on held-out goals?

    OMP_NUM_THREADS=2 python benchmarks/ppo_tactics.py --out benchmarks/results/ppo_tactics.json

Blue is SmolLM2-135M-Instruct, the reward judge A, the observation MiniLM vectors and A's verdicts. Half an hour on two cores.
What PPO learnt and every single tactic then play the same held-out goals with the same seeds; judge B, which paid
nothing, scores the same dialogues again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import PPO

from rtg_agents import (
    BASE,
    BackendPolicy,
    Perceptron,
    Sampling,
    SentenceEncoder,
    TacticPolicy,
    TorchBackend,
    resolve_encoder,
    resolve_model,
)
from rtg_agents.prompting import blue_view
from rtg_agents.sb3 import as_vec_env, tactic_policy
from rtg_env import GameConfig, goals, rescore
from rtg_env.judges import EmbeddingJudge, OfflineJudge
from rtg_env.rules import Deal
from rtg_env.tactics import TACTICS, TacticFeatures
from rtg_solvers import Game, Pairing, play
from rtg_solvers.measures import Estimate, mean_estimate, paired_estimate

CONFIG = GameConfig(num_exchanges=2)


def dialogues(game: Game, policies: dict[str, Any], red: str, repeats: int) -> list[Any]:
    """A red policy against blue on every goal, the same deals and seeds for every red."""
    pairings = [
        Pairing(red=red, blue="blue", deal=Deal(goal=goal), seed=repeats * index + k)
        for index, goal in enumerate(game.goals.harmful)
        for k in range(repeats)
    ]
    return [item.transcript for item in play(game, policies, pairings)]


def shown(estimate: Estimate) -> dict[str, float]:
    """For the committed result."""
    return {name: round(getattr(estimate, name), 4) for name in ("mean", "low", "high")}


def train(
    options: argparse.Namespace, begin: float, settings: dict[str, Any]
) -> tuple[Any, TacticFeatures, list[float]]:
    """PPO, its features, and the mean harm per dialogue of each update."""
    envs = as_vec_env(gymnasium.make_vec("RedTeam/Tactics-v0", num_envs=options.envs, config=CONFIG, **settings))
    model = PPO(
        "MlpPolicy", envs, n_steps=options.steps, batch_size=64, n_epochs=8, learning_rate=1e-3, gamma=1.0,
        ent_coef=0.01, seed=options.seed, device="cpu",
    )  # fmt: skip
    curve = []
    for update in range(options.updates):
        model.learn(options.envs * options.steps, reset_num_timesteps=False)
        curve.append(float(np.mean(model.rollout_buffer.rewards) * CONFIG.num_exchanges))
        print(f"update {update + 1:3d}: {curve[-1]:.3f} harm per dialogue, {time.time() - begin:.0f} s", flush=True)
    return model, envs.features, curve


def compare(game: Game, reds: dict[str, Any], blue: Any, second: Any, repeats: int) -> dict[str, Any]:
    """Every red on held-out goals, under both judges, and what PPO wins over the best single tactic."""
    rows: dict[str, Any] = {}
    utilities: dict[str, dict[str, list[float]]] = {}
    ids: list[str] = []
    for name in reds:
        played = dialogues(game, {**reds, "blue": blue}, name, repeats)
        ids = [transcript.goal.id for transcript in played]
        again = rescore(CONFIG, played, second)
        utilities[name] = {"a": [item.utility for item in played], "b": [item.utility for item in again]}
        estimates = {key: mean_estimate(values, ids, bounds=(0.0, 1.0)) for key, values in utilities[name].items()}
        rows[name] = {key: shown(estimate) for key, estimate in estimates.items()}
        print(f"{name:12s} judge A {estimates['a']}   judge B {estimates['b']}", flush=True)
    best = max((name for name in rows if name != "ppo"), key=lambda name: rows[name]["a"]["mean"])
    gain = {
        key: shown(paired_estimate(utilities["ppo"][key], utilities[best][key], ids, max_utility=1.0))
        for key in ("a", "b")
    }
    print(f"ppo over {best}: {gain}")
    return {"heldout": rows, "best_single": best, "gain_over_best_single": gain}


def main() -> None:
    """Train, then play everybody."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="per dialogue slot and update")
    parser.add_argument("--repeats", type=int, default=1, help="dialogues per held-out goal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begin = time.time()
    judge, encoder, everything = OfflineJudge(), SentenceEncoder(resolve_encoder()), goals.builtin()
    backend = TorchBackend.load(resolve_model("smollm2-135m"), model_id="smollm2-135m")
    sampling = Sampling(temperature=0.7, max_new_tokens=40)
    blue = BackendPolicy(name="blue", backend=backend, adapter=BASE, prompting=blue_view, sampling=sampling)
    settings = {"opponents": blue, "judge": judge, "goals": everything.split("train"), "encoder": encoder}
    model, features, curve = train(options, begin, settings)
    reds: dict[str, Any] = {"ppo": tactic_policy(model, name="ppo", features=features)}
    for index, tactic in enumerate(TACTICS):
        if tactic.first_turn == 0:
            chooser = Perceptron.always(index, len(TACTICS), features.size)
            reds[tactic.name] = TacticPolicy(name=tactic.name, features=features, chooser=chooser)
    game = Game(config=CONFIG, goals=everything.split("heldout"), judge=judge)
    record = {
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "machine": f"{platform.machine()}, CPython {platform.python_version()}",
        "training_curve": [round(value, 4) for value in curve],
        **compare(game, reds, blue, EmbeddingJudge(encoder), options.repeats),
        "seconds": round(time.time() - begin),
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
