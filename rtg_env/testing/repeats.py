"""Clauses about determinism: the same seed and the same actions show everybody the same, wherever and whenever."""

from __future__ import annotations

import numpy as np

from rtg_env.global_random import disturbed_global_random, global_random_state
from rtg_env.testing.clause import Unmet, clause
from rtg_env.testing.games import Move, difference
from rtg_env.testing.processes import views_elsewhere
from rtg_env.testing.trial import Trial, compare, follow


@clause(
    "draw only from a generator that reset(seed) restarts (gymnasium.utils.seeding.np_random), and keep clocks, "
    "uuids, ids and latencies out of observations and infos",
    needs=("episode",),
)
def replay(trial: Trial) -> None:
    """The same seed and actions in a new environment show the same observations, rewards and infos."""
    for script in trial.scripts():
        follow(trial.game(), script, "the same episode from the same seed and actions")


@clause("let reset() forget all of the episode before, its history and generator included", needs=("replay",))
def reset_again(trial: Trial) -> None:
    """The same seed plays the same episode however often the environment was used before."""
    for script in trial.scripts():
        game, rng = trial.begun(script.seed + 1), np.random.default_rng(script.seed)
        if not game.over:
            game.do(Move("step", trial.speak(game, rng)))
        follow(game, script, "the same episode after an unfinished one")
        follow(game, script, "the same episode a second time")


@clause("ignore option keys that you do not know; PettingZoo's own api_test passes one", needs=("replay",))
def unknown_options(trial: Trial) -> None:
    """Unknown keys in the options of reset change nothing."""
    script = trial.script(trial.first_seed)
    for options in ({"an option nobody knows": 1}, {}):
        game = trial.game()
        game.reset(script.seed, options)
        compare(game, script.plain_views[0], f"the same start with options={options}")
        follow(game, script, f"the same episode with options={options}", begin=1)


@clause("draw from a generator of your own; call neither random.* nor numpy.random.*", needs=("replay",))
def global_random(trial: Trial) -> None:
    """The global random generators are neither moved nor read."""
    for script in trial.scripts():
        game = trial.game()
        for index, move in enumerate(script.moves):
            before = global_random_state()
            game.do(move)
            seen = game.plain()
            if global_random_state() != before:
                raise Unmet("the global random state to stay as it is", "another one", game.where())
            if found := difference(script.plain_views[index], seen):
                raise Unmet("the same episode again", found, game.where())
        with disturbed_global_random(index):
            follow(trial.game(), script, "the same episode whatever the global random state is")


@clause("keep the state of an episode in the instance, never in the class or the module", needs=("global-random",))
def interleaved(trial: Trial) -> None:
    """Two environments that are played in turns do not feel each other."""
    seed = trial.first_seed
    one, two = trial.script(seed), trial.script(trial.options.seeds[-1])
    games = [(trial.game(), one), (trial.game(), two), (trial.game(), one)]
    for index in range(max(len(one.moves), len(two.moves))):
        for game, script in games:
            if index < len(script.moves):
                follow(game, script, "the same episode beside others", begin=index, end=index + 1)


@clause(
    "never depend on hash(), the order of a set, ids, the clock or anything else that a process has of its own",
    needs=("replay",),
)
def across_processes(trial: Trial) -> None:
    """The same seed and actions show the same in other processes, with other hash seeds."""
    scripts = trial.scripts()
    for views in views_elsewhere(trial.named, [script.moves for script in scripts]):
        for script, seen in zip(scripts, views, strict=True):
            for index, (here, there) in enumerate(zip(script.plain_views, seen, strict=True)):
                if found := difference(here, there):
                    agent = script.movers[index]
                    where = f"agent {agent}, move {index}" if agent else f"move {index}"
                    raise Unmet("the same episode in another process", found, f"{where}, seed {script.seed}")
