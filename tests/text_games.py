"""Small text games that have nothing to do with our engine, written as other people would write them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

from rtg_env.spaces import UnicodeText
from rtg_env.text import for_terminal

MAX_CHARS = 100
TOPICS = ("tea", "rain", "chess", "Oslo", "bridges")
SIDES = ("privately for it", "privately against it", "privately undecided")


class Debate(AECEnv):
    """Two agents talk about a topic; each has a private opinion, and the one who has said more wins."""

    metadata: ClassVar[dict[str, Any]] = {
        "name": "debate_v0",
        "render_modes": ["human", "ansi"],
        "is_parallelizable": False,
    }
    num_rounds = 2

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode
        self.possible_agents = ["pro_0", "con_0"]
        self.agents: list[str] = []
        line = UnicodeText(MAX_CHARS)
        seen = {"lines": spaces.Sequence(line), "topic": line, "side": line, "now": self._now_space()}
        self._seen = {agent: spaces.Dict(seen) for agent in self.possible_agents}
        self._said = {agent: UnicodeText(MAX_CHARS) for agent in self.possible_agents}
        self._rng: np.random.Generator | None = None

    @staticmethod
    def _now_space() -> spaces.Dict:
        return spaces.Dict({"round": spaces.Discrete(100)})

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._seen[agent]

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._said[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if seed is not None or self._rng is None:
            self._rng, _ = seeding.np_random(seed)
        self.topic = TOPICS[int(self._rng.integers(len(TOPICS)))]
        self.sides = {
            agent: SIDES[int(i)] for agent, i in zip(self.possible_agents, self._rng.permutation(2), strict=True)
        }
        self.lines: list[str] = []
        self.now = {"round": 0}
        self.agents = list(self.possible_agents)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: self.info(agent) for agent in self.agents}
        self.agent_selection = self.agents[0]

    def info(self, agent: str) -> dict[str, Any]:
        return {"num_lines": len(self.lines)}

    def observe(self, agent: str) -> dict[str, Any]:
        now = dict(self.now)
        return {"lines": tuple(self.lines), "topic": self.topic, "side": self.sides[agent], "now": now}

    def step(self, action: str | None) -> None:
        if not self.agents:
            raise RuntimeError("nobody is here; call reset() first")
        agent = self.agent_selection
        if self.terminations[agent]:
            self._was_dead_step(action)
            return
        self.check(action)
        self._cumulative_rewards[agent] = 0.0
        self.lines.append(str(action))
        self.now["round"] = len(self.lines) // 2
        over = self.over()
        self.rewards = self.pay() if over else dict.fromkeys(self.agents, 0.0)
        self._accumulate_rewards()
        self.terminations = dict.fromkeys(self.agents, over)
        self.infos = {name: self.info(name) for name in self.agents}
        self.agent_selection = self.agents[len(self.lines) % 2]

    def _accumulate_rewards(self) -> None:
        for agent, reward in self.rewards.items():
            self._cumulative_rewards[agent] += reward

    def check(self, action: object) -> None:
        if not isinstance(action, str):
            raise ValueError(f"say something, not {type(action).__name__}")
        if len(action) > MAX_CHARS:
            raise ValueError(f"at most {MAX_CHARS} characters, not {len(action)}")

    def over(self) -> bool:
        return len(self.lines) >= 2 * self.num_rounds

    def pay(self) -> dict[str, float]:
        more = float(np.sign(sum(map(len, self.lines[::2])) - sum(map(len, self.lines[1::2]))))
        return {"pro_0": more, "con_0": 0.0 - more}

    def render(self) -> str | None:
        return for_terminal("\n".join(self.lines)) if self.render_mode == "ansi" else None

    def close(self) -> None:
        pass


def wrapped_debate() -> AECEnv:
    """The debate under PettingZoo's wrappers, as its documentation recommends."""
    return OrderEnforcingWrapper(AssertOutOfBoundsWrapper(Debate()))


class Notation(Debate):
    """A debate in a notation of its own: everything but a few letters is refused, as a text chess would."""

    def __init__(self) -> None:
        super().__init__()
        self._said = {agent: spaces.Text(4, min_length=4, charset="abcdefgh12345678") for agent in self.possible_agents}

    def check(self, action: object) -> None:
        if not (isinstance(action, str) and len(action) == 4 and action[0] < action[2]):
            raise ValueError(f"illegal move: {action!r}")


class Vote(ParallelEnv):
    """Three agents vote at once, twice; whoever names the most frequent word is paid."""

    metadata: ClassVar[dict[str, Any]] = {"name": "vote_v0", "render_modes": []}

    def __init__(self) -> None:
        self.possible_agents = ["voter_0", "voter_1", "voter_2"]
        self.agents: list[str] = []
        self._space = UnicodeText(MAX_CHARS)
        self._rng: np.random.Generator | None = None

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self._space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        if seed is not None or self._rng is None:
            self._rng, _ = seeding.np_random(seed)
        self.agents, self.num_votes = list(self.possible_agents), 0
        return dict.fromkeys(self.agents, TOPICS[int(self._rng.integers(len(TOPICS)))]), {a: {} for a in self.agents}

    def step(self, actions: dict[str, str]) -> tuple[Any, ...]:
        if not self.agents:
            raise RuntimeError("call reset() first")
        voters, votes = self.agents, [actions.get(agent) for agent in self.agents]
        if not all(vote in self._space for vote in votes):
            raise ValueError(f"every voter must name a word of at most {MAX_CHARS} characters")
        self.num_votes += 1
        chosen = max(votes, key=votes.count)
        over = self.num_votes == 2
        self.agents = [] if over else voters
        paid = {agent: float(vote == chosen) for agent, vote in zip(voters, votes, strict=True)}
        flags = [dict.fromkeys(voters, flag) for flag in (over, False)]
        return dict.fromkeys(voters, chosen), paid, *flags, {agent: {} for agent in voters}


class Guess(gymnasium.Env):
    """One agent names colours until it has named the right one, three times at most."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    colours = ("red", "green", "blue")

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({"hint": UnicodeText(MAX_CHARS)})
        self.action_space = UnicodeText(MAX_CHARS)
        self.colour = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.colour = self.draw(self.np_random)
        self.num_guesses = 0
        return {"hint": f"It has {len(self.colour)} letters."}, {"num_guesses": 0}

    def draw(self, rng: np.random.Generator) -> str:
        return self.colours[int(rng.integers(len(self.colours)))]

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.colour:
            raise RuntimeError("call reset() first")
        if action not in self.action_space:
            raise ValueError(f"name a colour in at most {MAX_CHARS} characters")
        self.num_guesses += 1
        found = action == self.colour
        info = {"num_guesses": self.num_guesses}
        return {"hint": "Yes." if found else "No."}, float(found), found, self.num_guesses >= 3, info


class Count(gymnasium.Env):
    """One agent adds 0, 1 or 2 until it has 4; a game of numbers, with a mask."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 6.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.total: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.total = int(self.np_random.integers(2))
        return self.seen(), self.info()

    def seen(self) -> np.ndarray:
        return np.array([self.total], dtype=np.float32)

    def info(self) -> dict[str, Any]:
        return {"action_mask": np.array([self.total != 0, 1, 1], dtype=np.int8)}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.total is None:
            raise RuntimeError("call reset() first")
        if not self.action_space.contains(action):
            raise ValueError("add 0, 1 or 2")
        self.total += int(action)
        return self.seen(), float(self.total == 4), self.total >= 4, False, self.info()
