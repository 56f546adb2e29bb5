"""Steps per second of the environment, beside TextArena and beside PettingZoo's own wrappers.

    pip install -c constraints.txt ".[bench]"
    python benchmarks/env_steps.py --check

One process, one thread; variants take turns in short rounds, and ratios are medians over rounds, because absolute rates
depend on the machine and on what else it does. The judge is a constant, so that only the environment is timed. A step is
one sentence of one agent; resets and dead steps are part of the time. Every variant plays the same duel: T exchanges,
constant messages, one judge call (ours) or one outcome (TextArena) for the defender's answers. Garbage collection is on;
what the imports have left behind is frozen first, so that nobody pays for the modules of another variant.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import Bar, ConstantJudge, finish

from rtg_env import DialogueBatch, GameConfig, env, goals, raw_env
from rtg_env.rules import Deal

LENGTHS = (64, 1000)
EXCHANGES = (3, 10)

Play = Callable[[], int]
"""Plays one dialogue and returns its steps."""


def ours(environment: Any, message: str) -> Play:
    """The loop of PettingZoo's documentation, without the generator."""

    def play() -> int:
        environment.reset()
        steps = 0
        while environment.agents:
            _, _, termination, truncation, _ = environment.last()
            if termination or truncation:
                environment.step(None)
            else:
                environment.step(message)
                steps += 1
        return steps

    return play


def textarena(num_exchanges: int, message: str, *, history: bool) -> Play:
    """The same duel as a TextArena environment; raw, or with its history wrapper for language models."""
    import textarena as ta

    class Duel(ta.Env):  # type: ignore[misc]
        def reset(self, num_players: int, seed: int | None = None) -> None:
            self.state = ta.TwoPlayerState(num_players=num_players, seed=seed, max_turns=2 * num_exchanges)
            self.state.reset(game_state={}, player_prompt_function=self._prompt)

        def _prompt(self, player_id: int, game_state: dict[str, Any]) -> str:
            return f"You are player {player_id}."

        def step(self, action: str) -> tuple[bool, dict[str, Any]]:
            speaker = self.state.current_player_id
            self.state.add_observation(
                from_id=speaker, message=action, observation_type=ta.ObservationType.PLAYER_ACTION
            )
            if self.state.turn + 1 >= self.state.max_turns:
                self.state.set_winner(player_id=0, reason="constant")
            return self.state.step()

    environment: Any = ta.wrappers.LLMObservationWrapper(Duel()) if history else Duel()

    def play() -> int:
        environment.reset(num_players=2)
        if history:
            environment.full_observations = {}  # it keeps the old episode across resets
        done, steps = False, 0
        while not done:
            environment.get_observation()
            done, _ = environment.step(message)
            steps += 1
        environment.close()
        return steps

    return play


def wrapped(environment: Any) -> Any:
    """PettingZoo's two standard wrappers around an environment."""
    from pettingzoo.utils import wrappers

    return wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(environment))


def rate(play: Play, seconds: float) -> float:
    """Steps per second of CPU time."""
    steps, begin = 0, time.process_time()
    while (spent := time.process_time() - begin) < seconds:
        steps += play()
    return steps / spent


def compare(variants: dict[str, Play], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Rates of each variant, round by round, interleaved."""
    for play in variants.values():
        play()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, play in variants.items():
            rates[name].append(rate(play, seconds))
    return rates


def ratio(rates: dict[str, list[float]], over: str, under: str) -> float:
    """Median of per-round ratios."""
    return statistics.median(a / b for a, b in zip(rates[over], rates[under], strict=True))


def single(num_exchanges: int, length: int, *, rounds: int, seconds: float) -> dict[str, Any]:
    """One dialogue at a time."""
    message, judge = "x" * length, ConstantJudge()
    config = GameConfig(num_exchanges=num_exchanges)
    rates = compare(
        {
            "rtg_env.env": ours(env(config, judge=judge), message),
            "pettingzoo wrappers": ours(wrapped(raw_env(config, judge=judge)), message),
            "textarena raw": textarena(num_exchanges, message, history=False),
            "textarena history": textarena(num_exchanges, message, history=True),
        },
        rounds=rounds,
        seconds=seconds,
    )
    return {
        "exchanges": num_exchanges,
        "chars": length,
        "steps_per_s": {name: round(statistics.median(values)) for name, values in rates.items()},
        "vs_textarena_raw": ratio(rates, "rtg_env.env", "textarena raw"),
        "vs_textarena_history": ratio(rates, "rtg_env.env", "textarena history"),
        "vs_wrappers": ratio(rates, "rtg_env.env", "pettingzoo wrappers"),
    }


def batched(count: int, *, rounds: int) -> dict[str, Any]:
    """Many dialogues in lock step against one at a time, at several lengths."""
    judge, message = ConstantJudge(), "x" * 64
    goal = goals.builtin().harmful[0]
    costs: dict[int, list[float]] = {2: [], 8: [], 32: []}
    alone: list[float] = []
    for _ in range(rounds):
        for num_exchanges, values in costs.items():
            config = GameConfig(num_exchanges=num_exchanges)
            batch = DialogueBatch(config, [Deal(goal=goal)] * count, judge)
            begin, turns = time.process_time(), 0
            while pending := batch.pending():
                batch.submit({turn.dialogue: message for turn in pending})
                turns += len(pending)
            values.append((time.process_time() - begin) / turns)
        alone.append(1.0 / rate(ours(env(GameConfig(num_exchanges=8), judge=judge), message), 0.1))
    return {
        "us_per_turn": {str(key): 1e6 * statistics.median(values) for key, values in costs.items()},
        "vs_single_env": statistics.median(b / a for b, a in zip(costs[8], alone, strict=True)),
        "growth_2_to_32": statistics.median(b / a for b, a in zip(costs[32], costs[2], strict=True)),
    }


def main() -> None:
    """Print rates, then ratios with their bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="per variant and round")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    import textarena  # noqa: F401 - now, so that what it leaves behind is out of the collector's way in every variant

    gc.collect()
    gc.freeze()
    figures = [
        single(num_exchanges, length, rounds=options.rounds, seconds=options.seconds)
        for num_exchanges in EXCHANGES
        for length in LENGTHS
    ]
    many = batched(1024, rounds=7)
    for row in figures:
        print(f"{row['exchanges']} exchanges, {row['chars']} characters: {row['steps_per_s']} steps/s")
    print(f"1024 dialogues in lock step, us per turn by exchanges: {many['us_per_turn']}")
    bars = []
    for row in figures:
        where = f"{row['exchanges']} exchanges, {row['chars']} chars"
        bars.append(Bar(f"env : TextArena raw, {where}", row["vs_textarena_raw"], 0.4))
        bars.append(Bar(f"env : TextArena history, {where}", row["vs_textarena_history"], 1.0))
        bars.append(Bar(f"env : PettingZoo wrappers, {where}", row["vs_wrappers"], 4.0))
    bars.append(Bar("batch turn : single step", many["vs_single_env"], 1.0, at_least=False))
    bars.append(Bar("cost per turn, 32 : 2 exchanges", many["growth_2_to_32"], 1.15, at_least=False))
    record = {"rounds": options.rounds, "single": figures, "batched": many}
    finish(record, bars, out=options.out, check=options.check)


if __name__ == "__main__":
    main()
