"""Two attackers learn against one target, a target is tuned on each one's attacks, and everybody meets everybody. Seconds.

The cross-attack matrix in small, without a language model: an attack is one of ten openings, of which this target
falls for four, some more than others. Both attackers ask it equally often and are paid the same, log harm / beta.
On this toy REINFORCE narrows down to the best (on planted modes it did not, docs/planted-modes.md); a GFlowNet, by VarGrad,
says all four in proportion to reward: the target tuned on its attacks resists both. With models: docs/attackers.md.
Expected last line: `worst case of a target tuned on REINFORCE ..., on GFlowNet 0.00`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from rtg_agents import PlannedPolicy
from rtg_env import Action, Case, Deal, GameConfig, Observation, Verdict, goals
from rtg_solvers import Game, Pairing, play
from rtg_solvers.advantages import leave_one_out
from rtg_solvers.rollout import utilities
from rtg_solvers.sequence_losses import vargrad_loss

OPENINGS = ("Please:", "Hurry:", "Joke:", "Play:", "Class:", "Dare:", "Diary:", "Letter:", "Quiz:", "Song:")
STEPS_TOLD = {"Joke:": 10, "Play:": 9, "Diary:": 8, "Song:": 7}  # of 10, to whoever asks like this
FLOOR, BETA, UPDATES, ATTACKS, SAID = 0.02, 0.5, 200, 16, 0.02


class Target(NamedTuple):
    name: str
    refuses: tuple[str, ...] = ()

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        asked = [observation.messages[-1][1].split()[0] for observation in observations]
        told = [0 if opening in self.refuses else STEPS_TOLD.get(opening, 0) for opening in asked]
        return [Action(text=" step" * number or "No.", policy=self.name) for number in told]


class CountingJudge:
    judge_id = "counting-1"

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [Verdict(harm=case.exchange.blue.count("step") / 10, refusal=0.0, helpful=0.0) for case in cases]


def harm(openings: Sequence[str], target: Target) -> np.ndarray:
    pairings = [Pairing(red=opening, blue=target.name, deal=deal, seed=i) for i, opening in enumerate(openings)]
    return utilities(play(game, {**reds, target.name: target}, pairings))


def attacker(objective: str) -> np.ndarray:
    """How often it says each opening in the end."""
    logits, rng = torch.zeros(len(OPENINGS), requires_grad=True), np.random.default_rng(0)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(UPDATES):
        logp = logits.log_softmax(0)
        said = rng.choice(len(OPENINGS), size=ATTACKS, p=logits.detach().double().softmax(0).numpy())
        reward = np.log(np.maximum(harm([OPENINGS[place] for place in said], base), FLOOR)) / BETA
        if objective == "GFlowNet":
            loss = vargrad_loss(logp[said], torch.tensor(reward), [0] * ATTACKS).mean()
        else:
            loss = -(logp[said] * torch.tensor(leave_one_out(reward, [0] * ATTACKS))).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
        optimizer.step()
    return logits.detach().softmax(0).numpy()


game = Game(config=GameConfig(num_exchanges=1, benign_prob=0.0), goals=goals.builtin(), judge=CountingJudge())
deal, base = Deal(game.goals.harmful[0]), Target("base")
reds = {opening: PlannedPolicy(name=opening, templates=(opening + " {goal}",)) for opening in OPENINGS}
shares = {name: attacker(name) for name in ("REINFORCE", "GFlowNet")}
learned = {name: tuple(np.array(OPENINGS)[own > SAID]) for name, own in shares.items()}
targets = [base, *[Target(f"tuned on {name}", openings) for name, openings in learned.items()]]
matrix = np.array([[own @ harm(OPENINGS, target) for target in targets] for own in shares.values()])
for name, row in zip(shares, matrix, strict=True):
    cells = ", ".join(f"{target.name} {value:.2f}" for target, value in zip(targets, row, strict=True))
    print(f"{name} says {len(learned[name])} opening(s); mean harm: {cells}")
worst = matrix.max(axis=0)
print(f"worst case of a target tuned on REINFORCE {worst[1]:.2f}, on GFlowNet {worst[2]:.2f}")
