"""Games and judges that are broken in one way each; the conformance suite must name exactly that way."""

from __future__ import annotations

import copy
import random
import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle, seeding

import rtg_env
from rtg_env.env import parallel_env, raw_env
from rtg_env.spaces import UnicodeText
from rtg_env.types import Case, Verdict
from tests.doubles import GOALS, TextJudge
from tests.text_games import MAX_CHARS, Count, Debate, Guess

# What is shown


class Endless(Debate):
    def over(self) -> bool:
        return False


class NewSpaces(Debate):
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return UnicodeText(MAX_CHARS)


class NarrowSpace(Debate):
    """The default alphabet of `Text` has neither blanks nor accents."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self._said = {agent: spaces.Text(MAX_CHARS) for agent in self.possible_agents}


class ShortObservationSpace(Debate):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        for space in self._seen.values():
            space.spaces["lines"] = spaces.Sequence(UnicodeText(3))


class SetInInfo(Debate):
    def info(self, agent: str) -> dict[str, Any]:
        return {"words": set(self.lines)}


class ArrayInInfo(Count):
    def info(self) -> dict[str, Any]:
        return {**super().info(), "squares": np.array([0, 1, 4])}


class AddsAnyNumber(Count):
    def step(self, action: Any) -> Any:
        return super().step(action if self.action_space.contains(action) or not isinstance(action, int) else 2)


class NanInInfo(Debate):
    def info(self, agent: str) -> dict[str, Any]:
        return {"confidence": float("nan")}


class NumpyReward(Debate):
    def pay(self) -> dict[str, float]:
        return {agent: np.float64(reward) for agent, reward in super().pay().items()}


class NanReward(Debate):
    def pay(self) -> dict[str, float]:
        return dict.fromkeys(self.agents, float("nan"))


class NumpyFlags(Debate):
    def over(self) -> bool:
        return np.bool_(super().over())  # type: ignore[return-value]  # the point


# Determinism


class UuidInInfo(Debate):
    def info(self, agent: str) -> dict[str, Any]:
        return {"request": uuid.uuid4().hex}


class SeedsOnce(Debate):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed if self._rng is None else None, options)


class RemembersLines(Debate):
    """The history of the episode before is kept."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        before = getattr(self, "lines", [])
        super().reset(seed, options)
        self.topic += f", after {len(before)} lines" if seed is not None and before else ""


class StrictOptions(Debate):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        if options:
            raise KeyError(f"unknown options {options}")
        super().reset(seed)


class DrawsGlobally(Debate):
    def step(self, action: str | None) -> None:
        super().step(action)
        np.random.rand()  # noqa: NPY002 - the point


class ReadsGlobally(Debate):
    """Plays the same as long as nobody reseeds: then its topic follows the state of the process."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed, options)
        self.topic = str(random.getstate()[1][1])


class SharesLines(Debate):
    """The lines belong to the class."""

    shared: ClassVar[list[str]] = []

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed, options)
        self.shared.clear()
        self.lines = self.shared


class HashInInfo(Debate):
    def info(self, agent: str) -> dict[str, Any]:
        return {"order": hash(self.topic)}


# Copies, tampering, secrets


class CopiesFresh(Debate, EzPickle):
    def __init__(self, render_mode: str | None = None) -> None:
        EzPickle.__init__(self, render_mode)
        super().__init__(render_mode)


class PicklesFresh(CopiesFresh):
    """Clones well, but a pickle of it has forgotten everything."""

    def clone(self) -> Debate:
        twin = copy.copy(self)
        twin.__dict__.update(copy.deepcopy(vars(self)))
        return twin


class CloneShares(Debate):
    def clone(self) -> Debate:
        return copy.copy(self)


class LosesGenerator(raw_env):
    """A state without the generator."""

    def set_state(self, state: Any) -> None:
        super().set_state(state)
        self._rng, _ = seeding.np_random(0)


class LiveTranscript(Debate):
    def transcript(self) -> list[str]:
        return self.lines


class CountsTranscripts(Debate):
    """Looking changes what is there."""

    num_asked = 0

    def transcript(self) -> dict[str, Any]:
        self.num_asked += 1
        return {"lines": tuple(self.lines), "num_asked": self.num_asked}


class SharesObservation(Debate):
    def observe(self, agent: str) -> dict[str, Any]:
        return {**super().observe(agent), "now": self.now}


class KeepsInfo(Debate):
    """The infos are built once an episode."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        super().reset(seed, options)

    def info(self, agent: str) -> dict[str, Any]:
        return self.kept.setdefault(agent, {"who": agent})


class SharesInfo(Debate):
    """All agents have one info."""

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        super().reset(seed, options)
        self.infos = dict.fromkeys(self.agents, self.info("pro_0"))

    def step(self, action: str | None) -> None:
        super().step(action)
        self.infos = dict.fromkeys(self.agents, self.info("pro_0"))


class ReusesBuffer(Debate):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.buffers: dict[str, dict[str, Any]] = {agent: {} for agent in self.possible_agents}
        super().reset(seed, options)

    def observe(self, agent: str) -> dict[str, Any]:
        self.buffers[agent].clear()
        self.buffers[agent].update(super().observe(agent))
        return self.buffers[agent]


class LeaksInObservation(Debate):
    def observe(self, agent: str) -> dict[str, Any]:
        return {**super().observe(agent), "topic": f"{self.topic} ({self.sides['pro_0']})"}


class LeaksInInfo(Debate):
    def info(self, agent: str) -> dict[str, Any]:
        return {"notes": [{"all": dict(self.sides)}]}


# Order and actions


class NeverLeaves(Debate):
    def _was_dead_step(self, action: Any) -> None:
        if action is not None:
            raise ValueError("None, please")


class LeavesTogether(Debate):
    """The first dead step takes everybody away."""

    def _was_dead_step(self, action: Any) -> None:
        super()._was_dead_step(action)
        while self.agents:
            super()._was_dead_step(None)


class DeadMayTalk(Debate):
    def _was_dead_step(self, action: Any) -> None:
        super()._was_dead_step(None)


class StepsBeforeReset(Debate):
    def step(self, action: str | None) -> None:
        if self._rng is not None:
            super().step(action)


class IgnoresLateSteps(Debate):
    def step(self, action: str | None) -> None:
        if self.agents or self._rng is None:
            super().step(action)


class AcceptsAnything(Debate):
    def check(self, action: object) -> None:
        if len(str(action)) > MAX_CHARS:
            raise ValueError("too long")


class ForgetsToRefuse(Debate):
    """Counts what it refuses."""

    def check(self, action: object) -> None:
        if not isinstance(action, str):
            self.now["round"] += 1
        super().check(action)


class HalfAStep(Debate):
    """Notices only after half of the step that a text cannot be encoded."""

    def _accumulate_rewards(self) -> None:
        "".join(self.lines).encode()
        super()._accumulate_rewards()


class TwoErrors(Debate):
    def check(self, action: object) -> None:
        super().check(action)
        str(action).encode()


class SilentError(Debate):
    def check(self, action: object) -> None:
        if not isinstance(action, str) or len(action) > MAX_CHARS:
            raise ValueError


class NanOnNul(Debate):
    """Accepts NUL, and pays NaN for it."""

    def pay(self) -> dict[str, float]:
        return dict.fromkeys(self.agents, float("nan")) if "\x00" in "".join(self.lines) else super().pay()


class RawRender(Debate):
    def render(self) -> str | None:
        return "\n".join(self.lines) if self.render_mode == "ansi" else None


# Pay


class PaysBoth(Debate):
    def pay(self) -> dict[str, float]:
        return {"pro_0": 1.0, "con_0": 1.0}


class PaysRedUnlike(raw_env):
    """The second red member gets nothing."""

    def _pay(self, dialogue: Any) -> None:
        super()._pay(dialogue)
        self.rewards["red_1"] = self._cumulative_rewards["red_1"] = 0.0


class NoFlag(raw_env):
    def _new_infos(self, goal: Any, *, unscored: bool) -> dict[str, dict[str, Any]]:
        return {agent: {} for agent in self.agents}


class HidesFailure(raw_env):
    def _new_infos(self, goal: Any, *, unscored: bool) -> dict[str, dict[str, Any]]:
        return super()._new_infos(goal, unscored=False)


class PaysAfterFailure(raw_env):
    """Flags a failed dialogue, and pays red for it all the same."""

    def _pay(self, dialogue: Any) -> None:
        super()._pay(dialogue)
        if dialogue.unscored:
            self.rewards = {agent: -1.0 if agent == "blue_0" else 1.0 for agent in self.agents}


# What only the tests of others notice


class ObservesAlways(Debate):
    def last(self, observe: bool = True) -> tuple[Any, ...]:
        return super().last(True)


class Unseeded(UnicodeText):
    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return uuid.uuid4().hex


class UnseededSpace(Debate):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self._said = {agent: Unseeded(MAX_CHARS) for agent in self.possible_agents}


class HumanReturnsText(Debate):
    def render(self) -> str | None:
        return super().render() or "on the screen"


class ForgetsAnInfo(parallel_env):
    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        observations, infos = super().reset(seed, options)
        return observations, {agent: info for agent, info in infos.items() if agent != "blue_0"}


class UnseededParallel(parallel_env):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.space = Unseeded(2000)

    def action_space(self, agent: str) -> Any:
        return self.space


class OwnGenerator(Guess):
    """Gymnasium wants `super().reset(seed=seed)`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None or not hasattr(self, "rng"):
            self.rng = np.random.default_rng(seed)
        self.colour, self.num_guesses = self.draw(self.rng), 0
        return {"hint": f"It has {len(self.colour)} letters."}, {"num_guesses": 0}


def ours(kind: type = raw_env, **settings: Any) -> Any:
    """A subclass of our environment as a function that takes judge= and render_mode=."""

    def make(**keywords: Any) -> Any:
        return kind(**{"goals": GOALS, "judge": TextJudge(), "benign_prob": 0.5, **settings, **keywords})

    return make


def our_env(**keywords: Any) -> rtg_env.raw_env:
    """Our environment by a name that other processes can import."""
    return rtg_env.env(**{"goals": GOALS, "judge": TextJudge(), "benign_prob": 0.5, "num_red": 2, **keywords})


def our_parallel_env(**keywords: Any) -> rtg_env.parallel_env:
    """The same in parallel."""
    return rtg_env.parallel_env(**{"goals": GOALS, "judge": TextJudge(), "benign_prob": 0.5, "num_red": 2, **keywords})


# Judges


class Nameless(TextJudge):
    def __init__(self) -> None:
        super().__init__()
        self.judge_id = " "


class Renamed(TextJudge):
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        verdicts = super().judge(cases)
        self.judge_id += "'"
        return [Verdict(harm=v.harm, refusal=v.refusal, helpful=v.helpful, judge_id="x") for v in verdicts]


class NoEmptyBatch(TextJudge):
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        cases[0]
        return super().judge(cases)


class Short(TextJudge):
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return super().judge(cases)[:1]


class NumpyRaw(TextJudge):
    def _verdict(self, case: Case) -> Verdict:
        return Verdict(harm=0.5, refusal=0.5, helpful=0.5, judge_id=self.judge_id, raw={"cosine": np.float32(0.5)})


class Moody(TextJudge):
    num_calls = 0

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        self.num_calls += 1
        return [
            Verdict(harm=1.0 / (1 + self.num_calls), refusal=0.0, helpful=0.0, judge_id=self.judge_id) for _ in cases
        ]


class Relative(TextJudge):
    """The longest reply of the batch is the worst."""

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        most = max((len(case.exchange.blue) for case in cases), default=0) + 1
        return [
            Verdict(harm=len(case.exchange.blue) / most, refusal=0.0, helpful=0.0, judge_id=self.judge_id)
            for case in cases
        ]


class Greedy(TextJudge):
    """Takes the cases off the list."""

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        return [super(Greedy, self).judge([cases.pop(0)])[0] for _ in range(len(cases))]  # type: ignore[attr-defined]


class DrawingJudge(TextJudge):
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        random.random()
        return super().judge(cases)


class Encoding(TextJudge):
    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        for case in cases:
            case.exchange.blue.encode()
        return super().judge(cases)
