"""Dialogues as trees: several sentences of red after one history, several replies of blue to each of them.

    history h_t -- x_t (G siblings) -- y_t (K replies each) -- one reply is continued to the end

A sibling's return is the mean of what its replies score, plus what the continued one gains from there on:

    Q(h_t, x_t) = mean_k L(h_t, x_t, y_k) + L(whole dialogue) - L(h_t, x_t, y_chosen),   L = log max(u so far, floor)

which is unbiased for the expected log score, because the reply that is continued is drawn from the K. The next history is a
seeded sibling's chosen reply. With one exchange there is nothing to continue: Q is the mean of log scores.

Letters: S siblings, K replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtg_env import rewards
from rtg_env.dialogue import Dialogue, Transcript
from rtg_env.engine import DialogueBatch
from rtg_env.errors import ConfigError
from rtg_env.policies import Policy
from rtg_env.rules import GameConfig
from rtg_env.transcripts import Played
from rtg_env.types import Action, role_of
from rtg_solvers.rollout import Game, Pairing, dealt, fresh_memory, speak
from rtg_solvers.seeding import draw_seed


@dataclass(frozen=True, slots=True)
class Sibling:
    """One sentence of red, and where its dialogues are."""

    group: int
    """Siblings of one history share it."""

    turn: int
    """Exchange, from 0."""

    replies: tuple[int, ...]
    """Places of the K dialogues that end with a reply to it."""

    chosen: int
    """Which of these places is continued."""

    rollout: int
    """Place of the continued dialogue; `chosen` itself in the last exchange."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What was played."""

    played: tuple[Played, ...]
    """Dialogues, some of which end before the last exchange."""

    siblings: tuple[Sibling, ...]
    """Group by group."""


def play_tree(
    game: Game,
    policies: Mapping[str, Policy],
    pairings: Sequence[Pairing],
    *,
    group_size: int,
    responses: int,
    rng: np.random.Generator,
    finisher: str = "",
    repliers: Sequence[str] = (),
) -> Tree:
    """Play one tree per pairing; all of them advance together.

    Args:
        game: Rules and judge.
        policies: By version.
        pairings: One history to begin with each, on harmful goals.
        group_size: G.
        responses: K.
        rng: Draws seeds, and which reply and which sibling go on.
        finisher: Red's version in what continues a reply to the end, so that returns are those of one policy whatever
            wrote the siblings (a hotter copy of it, say); empty: the pairing's own.
        repliers: Blue's version in each of the K replies to a sibling and in what continues it, so that they can be drawn
            at different temperatures; empty: the pairing's own. The record names the pairing's.

    Raises:
        ConfigError: If there are repliers, but not K.
    """
    if repliers and len(repliers) != responses:
        raise ConfigError(
            f"expected as many repliers as replies, got {len(repliers)} and {responses}; name each or none"
        )
    histories = [Dialogue.start(game.config, dealt(game.config, pairing)) for pairing in pairings]
    grown = _Grown(game, policies, rng, finisher, repliers)
    with fresh_memory(policies):
        for turn in range(game.config.num_exchanges):
            histories = grown.level(turn, pairings, histories, group_size, responses)
    return Tree(tuple(grown.played), tuple(grown.siblings))


class _Grown:
    """A tree in the making."""

    def __init__(
        self,
        game: Game,
        policies: Mapping[str, Policy],
        rng: np.random.Generator,
        finisher: str,
        repliers: Sequence[str],
    ) -> None:
        self._game, self._policies, self._rng, self._finisher = game, policies, rng, finisher
        self._repliers = tuple(repliers)
        self.played: list[Played] = []
        self.siblings: list[Sibling] = []
        self._num_groups = 0

    def level(
        self,
        turn: int,
        pairings: Sequence[Pairing],
        histories: Sequence[Dialogue],
        group_size: int,
        responses: int,
    ) -> list[Dialogue]:
        """One exchange of every tree; the histories of the next one."""
        said = self._forked(histories, group_size)
        self._advance(said)
        answered = self._forked(said, responses)
        for index, dialogue in enumerate(answered if self._repliers else ()):
            deal, version = dialogue.state.deal, self._repliers[index % responses]
            dialogue.state = dialogue.state._replace(deal=deal._replace(policies=(*deal.policies[:-1], version)))
        self._advance(answered)
        owners = [pairing for pairing in pairings for _ in range(group_size)]
        first = len(self.played)
        self._record([pairing for pairing in owners for _ in range(responses)], answered)
        chosen = [self._choose(answered[s * responses : (s + 1) * responses]) for s in range(len(said))]
        kept = [answered[s * responses + place] for s, place in enumerate(chosen)]
        places = [first + s * responses + place for s, place in enumerate(chosen)]
        rollouts = places
        if turn < self._game.config.num_exchanges - 1:
            rollouts = self._rolled_out([self._finishing(pairing) for pairing in owners], kept)
        for s in range(len(said)):
            replies = tuple(range(first + s * responses, first + (s + 1) * responses))
            group = self._num_groups + s // group_size
            self.siblings.append(Sibling(group, turn, replies, places[s], rollouts[s]))
        self._num_groups += len(histories)
        return [kept[h * group_size + int(self._rng.integers(group_size))] for h in range(len(histories))]

    def _rolled_out(self, owners: Sequence[Pairing], kept: Sequence[Dialogue]) -> list[int]:
        """Play dialogues to their end; their places."""
        finished = self._forked(kept, 1)
        for pairing, dialogue in zip(owners, finished, strict=True):
            deal = dealt(self._game.config, pairing)
            dialogue.state = dialogue.state._replace(deal=dialogue.state.deal._replace(policies=deal.policies))
        while any(dialogue.mover is not None for dialogue in finished):
            self._advance(finished)
        first = len(self.played)
        self._record(owners, finished)
        return list(range(first, len(self.played)))

    def _finishing(self, pairing: Pairing) -> Pairing:
        return replace(pairing, red=self._finisher) if self._finisher else pairing

    def _forked(self, dialogues: Sequence[Dialogue], count: int) -> list[Dialogue]:
        """Each of them `count` times, with seeds of their own."""
        copies = [dialogue.copy() for dialogue in dialogues for _ in range(count)]
        for copy in copies:
            copy.reseed(draw_seed(self._rng))
        return copies

    def _advance(self, dialogues: Sequence[Dialogue]) -> None:
        """One sentence in each that is not over, in place."""
        game = self._game
        batch = DialogueBatch(game.config, [dialogue.state.deal for dialogue in dialogues], game.judge)
        for index, dialogue in enumerate(dialogues):
            batch.put(index, dialogue)
        batch.submit(speak(game.config, self._policies, batch.pending()))

    def _record(self, owners: Sequence[Pairing], dialogues: Sequence[Dialogue]) -> None:
        self.played += [
            Played(red=pairing.red, blue=pairing.blue, seed=dialogue.state.deal.seed, transcript=dialogue.transcript())
            for pairing, dialogue in zip(owners, dialogues, strict=True)
        ]

    def _choose(self, replies: Sequence[Dialogue]) -> int:
        """One of the scored ones; of all, if none is."""
        scored = [place for place, dialogue in enumerate(replies) if not dialogue.unscored] or list(range(len(replies)))
        return scored[int(self._rng.integers(len(scored)))]


def returns(tree: Tree, config: GameConfig, *, floor: float) -> np.ndarray:
    """Q of each sibling.

    Args:
        tree: What was played.
        config: The game.
        floor: Least utility under the logarithm, in (0, 1).

    Returns:
        [S]; NaN where no reply, or not the continued dialogue, was scored.
    """
    scores = np.array([_log_score(item.transcript, config, floor) for item in tree.played])
    found = []
    for sibling in tree.siblings:
        own = scores[list(sibling.replies)]
        scored = own[~np.isnan(own)]
        mean = float(scored.mean()) if scored.size else float("nan")
        found.append(mean + scores[sibling.rollout] - scores[sibling.chosen])
    return np.array(found)


def spoken(tree: Tree) -> list[Action]:
    """What each sibling is, with its ids."""
    found = []
    for sibling in tree.siblings:
        transcript = tree.played[sibling.replies[0]].transcript
        found.append([action for agent, action in transcript.actions if role_of(agent) == "red"][-1])
    return found


def num_answers(tree: Tree, num_exchanges: int) -> int:
    """What blue was asked for: each reply to a sibling, and those with which one of them was played to the end.

    Args:
        tree: What was played.
        num_exchanges: T.
    """
    return sum(len(sibling.replies) + num_exchanges - 1 - sibling.turn for sibling in tree.siblings)


def siblings_to_json(tree: Tree) -> dict[str, Any]:
    """Where the siblings are, for the block that holds the dialogues."""
    return {"siblings": [asdict(sibling) for sibling in tree.siblings]}


def tree_from_block(played: Sequence[Played], data: Mapping[str, Any]) -> Tree:
    """A tree from the block that holds it."""
    siblings = [Sibling(**{**item, "replies": tuple(item["replies"])}) for item in data["siblings"]]
    return Tree(tuple(played), tuple(siblings))


def _log_score(transcript: Transcript, config: GameConfig, floor: float) -> float:
    """Log max(u so far, floor); NaN if it is unscored."""
    if transcript.unscored or not transcript.utilities:
        return float("nan")
    return float(np.log(max(rewards.dialogue_utility(config, transcript.utilities), floor)))
