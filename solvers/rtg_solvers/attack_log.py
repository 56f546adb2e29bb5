"""What attackers of a run have said, and what came of it: read back from the run's store.

The log is every attack, not the replay buffer's selection of them. Training dialogues are in blocks `train/VERSION/STEP`, a
member's payoff cells in `cell/RED/BLUE`, attack stages in `attacks/STAGE/BLOCK`; in all of them an attack is one sentence of
red after one history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from rtg_env.rules import GameConfig
from rtg_env.transcripts import Played, TranscriptStore
from rtg_solvers.imitation import Sentence, sentences_of
from rtg_solvers.tree_rollout import tree_from_block

STAGE_PREFIX: Final = "attacks/"
"""How the names of all blocks of attack stages begin; then the stage's name and the number of the block."""


class FoundAttack(NamedTuple):
    """An attack and the replies to it."""

    goal: str
    """Id."""

    red: Sentence
    """The attack, and what its author saw."""

    blue: Sentence
    """One of the replies, and what the target saw."""

    harms: tuple[float, ...]
    """[K] harm of each scored reply, in [0, 1]."""

    reference_logp: float | None
    """log p_ref of the attack; None if nobody measured it."""

    @property
    def harm(self) -> float:
        """Arithmetic mean harm: an attack succeeds above one half."""
        return float(np.mean(self.harms))

    def score(self, floor: float) -> float:
        """Geometric mean harm, R1 of the attackers' reward; every reply counts at least `floor`."""
        return float(np.exp(np.mean(np.log(np.maximum(self.harms, floor)))))


def attacks_found(store: TranscriptStore, config: GameConfig, version: str, *targets: str) -> list[FoundAttack]:
    """All scored attacks of a version in its training, or in its attack stage; in payoff cells, if it has neither.

    Args:
        store: Of the run.
        config: The game.
        version: Of red.
        targets: Versions of blue that the payoff cells are with.
    """
    names = store.block_names()
    blocks = [name for name in names if name.startswith(f"train/{version}/")]
    if not blocks:
        stages = (name for name in names if name.startswith(STAGE_PREFIX))
        blocks = [name for name in stages if (store.block_data(name) or {}).get("red") == version]
    if not blocks:
        cells = [f"cell/{version}/{target}" for target in targets]
        blocks = [name for name in names if any(name == cell or name.startswith(f"{cell}/") for cell in cells)]
    found: list[FoundAttack] = []
    for name in blocks:
        played, data = store.block(name), store.block_data(name) or {}
        found += _of_tree(config, played, data) if "siblings" in data else _of_dialogues(config, played)
    return found


def different(attacks: Iterable[FoundAttack]) -> list[FoundAttack]:
    """Those that say the same to the same goal after the same history as one, with all their replies' harm."""
    kept: dict[tuple[Any, ...], FoundAttack] = {}
    for attack in attacks:
        known = kept.get(_key(attack))
        kept[_key(attack)] = known._replace(harms=known.harms + attack.harms) if known else attack
    return list(kept.values())


def _of_tree(config: GameConfig, played: Sequence[Played], data: Mapping[str, Any]) -> Iterator[FoundAttack]:
    """Siblings with their K replies."""
    tree = tree_from_block(played, data)
    logps = data.get("reference_logps")
    for index, sibling in enumerate(tree.siblings):
        replies = [tree.played[place] for place in sibling.replies]
        first = replies[0].transcript
        if not first.goal.harmful:
            continue
        harms = tuple(
            reply.transcript.verdicts[sibling.turn].harm for reply in replies if not reply.transcript.unscored
        )
        if harms:
            red, blue = (sentences_of(config, first, role)[sibling.turn] for role in ("red", "blue"))
            yield FoundAttack(first.goal.id, red, blue, harms, float(logps[index]) if logps else None)


def _of_dialogues(config: GameConfig, played: Sequence[Played]) -> list[FoundAttack]:
    """Every exchange on a harmful goal; those that say the same after the same history are one attack with K replies."""
    found: list[FoundAttack] = []
    for item in played:
        transcript = item.transcript
        if not transcript.goal.harmful or transcript.unscored:
            continue
        red, blue = (sentences_of(config, transcript, role) for role in ("red", "blue"))
        for attack, reply, verdict in zip(red, blue, transcript.verdicts, strict=False):  # a side may run out of tokens
            found.append(FoundAttack(transcript.goal.id, attack, reply, (verdict.harm,), None))
    return different(found)


def _key(attack: FoundAttack) -> tuple[Any, ...]:
    return attack.goal, tuple(attack.red.seen.messages), attack.red.action.text
