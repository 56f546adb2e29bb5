"""Which checkpoint of red's best response becomes the member: the most diverse of those that win about as much.

Diversity is read off payoff rows, as in Diverse PSRO and BD&RD-PSRO, and chooses among checkpoints; no gradient flows.
Each checkpoint plays every blue member on deals of its own, the same for all checkpoints. The winner's luck on them stays
out of the payoffs, whose cells are played on other deals.

Letters: Q checkpoints, M members of red, K members of blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rtg_env.errors import JudgeError
from rtg_env.transcripts import Played
from rtg_solvers.diversity import expected_cardinality, response_diversity
from rtg_solvers.loop import DialogueContext, Task
from rtg_solvers.oracles.shaping import DiversitySettings, Selection
from rtg_solvers.rollout import Pairing, draw_pairings, num_answered, play, utilities
from rtg_solvers.seeding import rng_for

if TYPE_CHECKING:
    from rtg_agents.hf import TorchBackend


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A checkpoint, and what it was chosen by."""

    chosen: int
    """Its place among the candidates."""

    utilities: tuple[float, ...]
    """[Q] what each wins against the mixture."""

    diversities: tuple[float, ...]
    """[Q] by the rule that was asked for."""


def candidate_steps(steps: int, candidates: int) -> tuple[int, ...]:
    """After which steps checkpoints are kept: evenly spaced over the second half, the last step among them.

    Args:
        steps: Of the whole training.
        candidates: Wanted; fewer come back if the second half has fewer steps.
    """
    halves = 2 * candidates
    return tuple(sorted({-(-steps * place // halves) for place in range(candidates + 1, halves + 1)}))


def selection_dialogues(settings: DiversitySettings, num_blue: int) -> int:
    """Dialogues that one choice takes.

    Args:
        settings: Of diversity.
        num_blue: Members of blue that each checkpoint plays.
    """
    return 0 if settings.select == "none" else settings.candidates * settings.select_dialogues * num_blue


def choose(
    rule: Selection, tolerance: float, rows_QK: np.ndarray, members_MK: np.ndarray, opponents_K: np.ndarray
) -> Choice:
    """The most diverse candidate among those that win at least the most less the tolerance.

    So the choice costs at most the tolerance, on the dialogues that it is made on; with 0 the best one is chosen. Of
    equally diverse ones the better is taken, of equally good ones the later.

    Args:
        rule: `cardinality`: of all members' rows and the candidate's; `response`: of the candidate's row.
        tolerance: In utility, at least 0.
        rows_QK: [Q, K] payoffs of the candidates.
        members_MK: [M, K] payoffs of red's members.
        opponents_K: [K] the mixture of blue.
    """
    rows, members = np.asarray(rows_QK, dtype=float), np.asarray(members_MK, dtype=float)
    won = rows @ np.asarray(opponents_K, dtype=float)
    diversities = [
        expected_cardinality(np.vstack([members, row])) if rule == "cardinality" else response_diversity(members, row)
        for row in rows
    ]
    near = [place for place in range(len(rows)) if won[place] >= won.max() - tolerance]
    return Choice(
        chosen=max(near, key=lambda place: (diversities[place], won[place], place)),
        utilities=tuple(float(utility) for utility in won),
        diversities=tuple(float(diversity) for diversity in diversities),
    )


def choose_checkpoint(
    task: Task[DialogueContext],
    backend: TorchBackend,
    settings: DiversitySettings,
    tolerance: float,
    folders: Mapping[int, Path],
) -> Choice:
    """Play the kept checkpoints, a unit of the store each, and choose.

    Args:
        task: Of red.
        backend: Has each checkpoint under a name of its own while it plays.
        settings: Rule and number of deals.
        tolerance: In utility.
        folders: Saved checkpoint by step.

    Raises:
        JudgeError: If a checkpoint or a member has not one scored dialogue against a member of blue.
    """
    deals = draw_pairings(
        task.context.game,
        rng_for(task.context.seed, "select", task.iteration),
        count=settings.select_dialogues,
        red=lambda _: "",
        blue=lambda _: "",
    )
    rows = np.array([_row(task, backend, deals, step, folder) for step, folder in folders.items()])
    members = task.payoffs.mean
    if np.isnan(members).any():
        raise JudgeError(
            "expected a scored dialogue in every payoff cell to choose a checkpoint by, one has none; "
            "mend the judge and start a new run"
        )
    return choose(settings.select, tolerance, rows, members, task.mixture.blue)


def _row(
    task: Task[DialogueContext], backend: TorchBackend, deals: Sequence[Pairing], step: int, folder: Path
) -> np.ndarray:
    """[K] what one checkpoint wins against each blue member; played once, whatever happens in between."""
    store, block, name = task.context.store, f"select/{task.version}/{step:04d}", f"{task.version}-step-{step:04d}"
    blue = task.payoffs.blue
    if not store.has_block(block):
        pairings = [replace(deal, red=name, blue=opponent) for opponent in blue for deal in deals]
        backend.load_adapter(name, folder)
        try:
            policy = task.context.population.model_policy(name, task.role, name)
            played = play(task.context.game, {**task.context.population.policies, name: policy}, pairings)
        finally:
            backend.drop(name)
        _means(played, blue, block)
        store.put_block(block, played, {"num_queries": num_answered(played)})
    task.context.meter.add(len(blue) * len(deals))
    return _means(store.block(block), blue, block)


def _means(played: Sequence[Played], blue: Sequence[str], block: str) -> np.ndarray:
    won, opponents = utilities(played), np.array([item.blue for item in played])
    scored = ~np.isnan(won)
    for opponent in blue:
        if not scored[opponents == opponent].any():
            raise JudgeError(
                f"expected a scored dialogue against {opponent} in {block}, all are unscored; "
                "mend the judge and run the same command again"
            )
    return np.array([won[scored & (opponents == opponent)].mean() for opponent in blue])
