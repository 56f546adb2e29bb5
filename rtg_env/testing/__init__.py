"""Does my text game, or my judge, keep what others rely on? A public conformance suite.

    from rtg_env.testing import check_env, check_judge

    check_env(make_env)  # a function that returns a new environment: AEC, parallel or gymnasium
    check_judge(MyJudge())

Runs PettingZoo's and Gymnasium's own tests and clauses of ours: determinism, also in another process; copies, saved
states and transcripts; who may see and change what; order and actions; pay. Every clause runs, and one
`ConformanceError` lists all that failed, each with what was expected, where, and what to do. No pytest is needed:
`python -m rtg_env.testing module:make_env` prints the same as a table. See docs/testing.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from rtg_env.errors import ConfigError
from rtg_env.judges.base import Judge
from rtg_env.testing import copies, judging, pay, refusals, repeats, upstream, values
from rtg_env.testing.clause import Clause, Conformance, Finding, run
from rtg_env.testing.judging import JudgeTrial, default_cases
from rtg_env.testing.trial import Options, Secrets, Speaker, Teams, Trial
from rtg_env.types import Case

__all__ = [
    "ENV_CLAUSES",
    "JUDGE_CLAUSES",
    "Clause",
    "Conformance",
    "Finding",
    "check_env",
    "check_judge",
]

ENV_CLAUSES: Final[tuple[Clause[Trial], ...]] = (
    values.episode,
    values.spaces,
    values.spoken_actions,
    values.free_text,
    values.observations,
    values.json_values,
    values.finite_rewards,
    values.boolean_flags,
    repeats.replay,
    repeats.reset_again,
    repeats.unknown_options,
    repeats.global_random,
    repeats.interleaved,
    repeats.across_processes,
    copies.copies,
    copies.saved_state,
    copies.pickled,
    copies.transcript,
    copies.tampered_observations,
    copies.tampered_infos,
    copies.kept_observations,
    copies.secrets,
    refusals.dead_steps,
    refusals.step_before_reset,
    refusals.step_after_end,
    refusals.wrong_types,
    refusals.awkward_text,
    pay.zero_sum,
    pay.judged,
    pay.unscored,
    upstream.pettingzoo_api,
    upstream.pettingzoo_seed,
    upstream.pettingzoo_parallel_api,
    upstream.pettingzoo_parallel_seed,
    upstream.pettingzoo_render,
    upstream.gymnasium_api,
    refusals.rendering,
)
"""What is asked of environments; a clause that needs others stands after them."""

JUDGE_CLAUSES: Final[tuple[Clause[JudgeTrial], ...]] = (
    judging.protocol,
    judging.empty_batch,
    judging.one_verdict_per_case,
    judging.numbers,
    judging.json_raw,
    judging.repeatable,
    judging.batch_invariance,
    judging.unchanged_cases,
    judging.global_random,
    judging.hostile_text,
)
"""What is asked of judges."""


def check_env(
    make_env: Callable[..., Any] | str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_episodes: int = 2,
    max_steps: int = 500,
    say: Speaker | None = None,
    secrets: Secrets | None = None,
    teams: Teams | None = None,
    zero_sum: bool = False,
    skip: Collection[str] = (),
) -> Conformance:
    """Check an environment with text actions against every clause.

    Args:
        make_env: Returns a new PettingZoo AEC or parallel environment, or a Gymnasium one, wrapped or not; called
            many times. A `module:function` name does as well. Clauses about judges need it to take `judge=`,
            those about rendering `render_mode=`.
        seeds: Each is played; at least one.
        num_episodes: Episodes per seed; the first is reset with it, the later ones without.
        max_steps: Longest episode that is allowed, in calls of `step`.
        say: (agent, observation, rng) -> what the agent says, a function of these alone. Default: a few phrases as
            far as the action space holds them, or samples of it. Give one if the rules refuse those.
        secrets: env -> for each agent the texts that it may see, but nobody who does not have them there. Known for
            the environments of this package.
        teams: Team of each agent, or a function of the environment: teams are paid alike inside and zero-sum between.
            Known for the environments of this package.
        zero_sum: Rewards of all agents add up to 0; for games without teams.
        skip: Names of clauses to leave out.

    Returns:
        What passed and what was skipped, with the reasons; `print` it.

    Raises:
        ConformanceError: If a clause fails; the message lists all that do, `report` holds the report.
        ConfigError: If an argument is wrong, or `make_env` returns something else.
    """
    options = Options(
        seeds=tuple(seeds),
        num_episodes=num_episodes,
        max_steps=max_steps,
        say=say,
        secrets=secrets,
        teams=teams,
        zero_sum=zero_sum,
    )
    trial = Trial(make_env, options)
    try:
        kind = trial.game().kind
        report = run(ENV_CLAUSES, trial, name=_name_of(make_env), skip=skip, kind=kind, after=trial.close)
    finally:
        trial.close()
    return report.raise_if_failed()


def check_judge(
    judge: Judge, *, cases: Sequence[Case] | None = None, tolerance: float = 0.0, skip: Collection[str] = ()
) -> Conformance:
    """Check a judge against every clause.

    Args:
        judge: The judge.
        cases: What it is asked, at least one; default: labelled replies to a few built-in goals.
        tolerance: How much a number may differ between batches: 0 for arithmetic on one case at a time, about 1e-5
            for a neural network that pads.
        skip: Names of clauses to leave out.

    Returns:
        What passed and what was skipped, with the reasons; `print` it.

    Raises:
        ConformanceError: If a clause fails; the message lists all that do, `report` holds the report.
        ConfigError: If an argument is wrong.
    """
    chosen = default_cases() if cases is None else tuple(cases)
    if not chosen or not tolerance >= 0.0:
        raise ConfigError(f"expected at least one case and a tolerance >= 0, got {len(chosen)} and {tolerance}")
    trial = JudgeTrial(judge, chosen, tolerance)
    return run(JUDGE_CLAUSES, trial, name=_name_of(type(judge)), skip=skip).raise_if_failed()


def _name_of(thing: object) -> str:
    thing = getattr(thing, "func", thing)  # what a functools.partial calls
    if isinstance(thing, str):
        return thing
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', type(thing).__qualname__)}"
