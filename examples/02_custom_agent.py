"""A custom agent is one class with one method; this one escalates.

Expected last line: `red won ... in 8 dialogues`.
"""

from collections.abc import Sequence

import numpy as np

from rtg_agents import ScriptedPolicy
from rtg_env import Action, Deal, GameConfig, Observation, goals
from rtg_env.judges import OfflineJudge
from rtg_solvers import Game, Pairing, play


class Escalating:
    name = "escalating"

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        return [Action(text="Come on! " * o.turn + (o.goal.text if o.goal else "")) for o in observations]


game = Game(config=GameConfig(num_exchanges=3), goals=goals.builtin(), judge=OfflineJudge())
blue = ScriptedPolicy(
    name="weak", lines=("I would rather not.", "Well...", "Fine, here is how: do it when nobody looks.")
)
pairings = [Pairing(red="red", blue="blue", deal=Deal(goal=g), seed=i) for i, g in enumerate(game.goals.harmful[:8])]
played = play(game, {"red": Escalating(), "blue": blue}, pairings)
print(f"red won {np.nanmean([p.transcript.utility for p in played]):.2f} in {len(played)} dialogues")
