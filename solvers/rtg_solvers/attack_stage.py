"""An attack stage: N seeds, n attacks on each, m replies to every attack, all of them kept.

SEAS (arXiv:2408.02632) and MART (arXiv:2311.07689) train both sides on what one stage leaves behind. A stage is played in
blocks of a few seeds; a block is in the run's store whole or not at all, so that a run that was killed goes on within the
stage and plays no finished seed again. Both oracles of an iteration ask for the same stage; whoever comes first plays it.

Letters: N seeds, n attacks, m replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rtg_agents.policy import Policy
from rtg_env import rules
from rtg_env.errors import ConfigError
from rtg_env.goals import Goal
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action, role_of
from rtg_solvers.attack_log import STAGE_PREFIX
from rtg_solvers.loop import DialogueContext
from rtg_solvers.rollout import Pairing
from rtg_solvers.seeding import draw_seed, rng_for
from rtg_solvers.tree_rollout import Sibling, Tree, play_tree, siblings_to_json, tree_from_block
from rtg_solvers.tuples import AttackTuple, Place, TupleLog, raw_verdict, verdict_class
from rtg_solvers.workbench import check_scored


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackStage:
    """Who attacks whom, from what, how often."""

    name: str
    """Unique in its run; a plain word, such as `1`."""

    red: str
    """Version that attacks."""

    blue: str
    """Version that answers."""

    seeds: tuple[Goal, ...]
    """N harmful goals, each once."""

    attacks: int = 5
    """Per seed (n), at least 1."""

    replies: int = 5
    """Per attack (m), at least 1."""

    block: int = 4
    """Seeds in one block, at least 1: at most so many are lost by a kill."""

    def __post_init__(self) -> None:
        """Refuse a stage that cannot be played, or whose tuples could not be told apart."""
        if min(self.attacks, self.replies, self.block) < 1:
            raise ConfigError(
                f"expected attacks, replies and block >= 1, got {self.attacks}, {self.replies} and {self.block}"
            )
        if len({seed.id for seed in self.seeds}) < len(self.seeds) or not all(seed.harmful for seed in self.seeds):
            raise ConfigError("expected different harmful goals as seeds, got one twice or a benign one; leave it out")

    @property
    def num_replies(self) -> int:
        """Answers that the target is asked for."""
        return len(self.seeds) * self.attacks * self.replies

    @property
    def blocks(self) -> tuple[tuple[str, tuple[Goal, ...]], ...]:
        """Name and seeds of each block."""
        starts = range(0, len(self.seeds), self.block)
        return tuple(
            (f"{STAGE_PREFIX}{self.name}/{number:04d}", self.seeds[start : start + self.block])
            for number, start in enumerate(starts)
        )


class SaidTuples(NamedTuple):
    """What a stage left behind."""

    log: TupleLog
    """N n m tuples, seed by seed, attack by attack."""

    said: Mapping[Place, Action]
    """Every attack and reply with the ids it was sampled as, and those that its speaker read."""


def play_stage(context: DialogueContext, stage: AttackStage, policies: Mapping[str, Policy]) -> int:
    """Play the blocks that are not in the store yet.

    Args:
        context: The run. Of dialogues with several exchanges only the first is an attack stage's.
        stage: Who attacks whom.
        policies: By version.

    Returns:
        How many blocks were played by this call.

    Raises:
        JudgeError: If the judge failed on more than half of a block.
    """
    fresh = 0
    for name, seeds in stage.blocks:
        if not context.store.has_block(name):
            tree = _played(context, stage, name, seeds, policies)
            check_scored(name, tree.played)
            context.store.put_block(name, tree.played, siblings_to_json(tree) | {"red": stage.red, "blue": stage.blue})
            fresh += 1
    return fresh


def said_in(store: TranscriptStore, stages: Sequence[str], *, threshold: float = 0.5) -> SaidTuples:
    """The tuples of some stages as they are stored, finished or not.

    Args:
        store: Of the run.
        stages: Names, in the order in which tuples are to stand.
        threshold: A reply is unsafe if its harm is above it.
    """
    tuples: list[AttackTuple] = []
    said: dict[Place, Action] = {}
    for stage in stages:
        for name in (one for one in store.block_names() if one.startswith(f"{STAGE_PREFIX}{stage}/")):
            tree = tree_from_block(store.block(name), store.block_data(name))
            for item, attack, reply in _tuples(tree, threshold):
                tuples.append(item)
                said[item.place] = reply
                said[item.place._replace(reply=None)] = attack
    return SaidTuples(TupleLog(tuple(tuples)), said)


def stages_in(store: TranscriptStore) -> list[str]:
    """Names of the attack stages of a run, in the order in which they were played."""
    names = (
        name.removeprefix(STAGE_PREFIX).split("/")[0] for name in store.block_names() if name.startswith(STAGE_PREFIX)
    )
    return list(dict.fromkeys(names))


def _played(
    context: DialogueContext, stage: AttackStage, name: str, seeds: Sequence[Goal], policies: Mapping[str, Policy]
) -> Tree:
    rng = rng_for(context.seed, name)
    config = context.game.config
    pairings = [
        Pairing(red=stage.red, blue=stage.blue, deal=rules.draw_deal(config, goal, rng), seed=draw_seed(rng))
        for goal in seeds
    ]
    return play_tree(context.game, policies, pairings, group_size=stage.attacks, responses=stage.replies, rng=rng)


def _tuples(tree: Tree, threshold: float) -> list[tuple[AttackTuple, Action, Action]]:
    """Every reply to a first sentence, with both sentences' actions."""
    found = []
    indices = _indices(tree.siblings)
    for sibling, index in zip(tree.siblings, indices, strict=True):
        for number, place in enumerate(sibling.replies if sibling.turn == 0 else ()):
            transcript = tree.played[place].transcript
            exchange, verdict = transcript.exchanges[0], transcript.verdicts[0]
            item = AttackTuple(
                seed_id=transcript.goal.id,
                seed_type=transcript.goal.category,
                prompt=transcript.goal.text,
                attack=exchange.red,
                attack_index=index,
                reply=exchange.blue,
                reply_index=number,
                verdict=verdict_class(verdict, threshold=threshold),
                verdict_raw=raw_verdict(verdict),
                judge_id=verdict.judge_id,
            )
            by_side = {role_of(agent): action for agent, action in reversed(transcript.actions)}
            found.append((item, by_side["red"], by_side["blue"]))
    return found


def _indices(siblings: Sequence[Sibling]) -> list[int]:
    """Number of each sibling among those of its history."""
    seen: dict[int, int] = {}
    found = []
    for sibling in siblings:
        found.append(seen.get(sibling.group, 0))
        seen[sibling.group] = found[-1] + 1
    return found
