"""A round of MART as it is played and kept: prompts after parents, answers to them, and what the selection made of it.

MART (arXiv:2311.07689): red writes K_adv prompts after each parent, the target gives K_tgt answers to each. A parent of a
later round is a prompt that nobody knew when the run began, so it is no goal of the run, and its dialogues cannot stand in
the store as dialogues on goals. A round is kept as data instead: blocks of a few parents with every prompt, answer, verdict,
and the ids that were read and sampled. A block is there whole or not at all, so that a run that was killed goes on within
the round and asks after no finished parent again. What was selected is a block of its own.

Round 0 is the target's answers to the seeds as they stand; thresholds that fit the judge are read off them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np

from rtg_agents.policy import BackendPolicy, Policy
from rtg_agents.scripted import plain_attacker
from rtg_agents.seed_prompt import render_after
from rtg_env import rules
from rtg_env.dialogue import Transcript, action_from_json, verdict_from_json, verdict_to_json
from rtg_env.errors import ConfigError, PolicyError
from rtg_env.goals import Goal
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action, role_of
from rtg_solvers.loop import DialogueContext
from rtg_solvers.mart_selection import (
    EndReason,
    Lesson,
    MartAnswer,
    MartPrompt,
    MartSelection,
    MartThresholds,
    Offspring,
    scored_answer,
    select,
)
from rtg_solvers.rollout import Pairing
from rtg_solvers.seeding import draw_seed, rng_for
from rtg_solvers.tree_rollout import Tree, play_tree
from rtg_solvers.workbench import check_scored

PREFIX: Final = "mart/"
"""How the names of all blocks of rounds begin; then the round's number and that of the block."""

RoundEnd = EndReason | Literal["no prompt succeeded that was new"]
"""Why MART stops after a round."""

_SELECTED: Final = "mart-selected/"
_PLAIN: Final = "the seeds"


@dataclass(frozen=True, slots=True, kw_only=True)
class MartRound:
    """Who writes after what, and who answers."""

    number: int
    """From 1; 0: the parents themselves are what the target is asked, once each."""

    red: str
    """Version that writes; none is asked in round 0."""

    blue: str
    """Version that answers."""

    parents: tuple[MartPrompt, ...]
    """P_adv of the round before, each once."""

    prompts: int = 4
    """After each parent (K_adv), at least 1."""

    temperatures: tuple[float, ...] = (0.7,)
    """One of each answer to a prompt (K_tgt of them), above 0."""

    preprompt: str = ""
    """Instructions that the target reads before its own; empty for none."""

    block: int = 4
    """Parents that are kept together, at least 1: at most so many are lost by a kill."""

    def __post_init__(self) -> None:
        """Refuse a round that cannot be played, or whose prompts could not be told apart."""
        if min(self.prompts, self.block, len(self.temperatures)) < 1 or self.number < 0:
            raise ConfigError(
                f"expected number >= 0, prompts and block >= 1 and temperatures, got {self.number}, {self.prompts}, "
                f"{self.block} and {self.temperatures}"
            )
        if len({parent.id for parent in self.parents}) < len(self.parents):
            raise ConfigError("expected different parents, got one id twice; number them")

    @property
    def num_answers(self) -> int:
        """What the target is asked for."""
        return len(self.parents) * (self.prompts if self.number else 1) * len(self.temperatures)

    @property
    def blocks(self) -> tuple[tuple[str, int, tuple[MartPrompt, ...]], ...]:
        """Name, place of the first parent, and parents of each block."""
        starts = range(0, len(self.parents), self.block)
        return tuple(
            (f"{PREFIX}{self.number}/{number:04d}", start, self.parents[start : start + self.block])
            for number, start in enumerate(starts)
        )


class PlayedRound(NamedTuple):
    """What a round left behind."""

    prompts: tuple[MartPrompt, ...]
    """Parent by parent; in round 0 the seeds."""

    answers: tuple[MartAnswer, ...]
    """Prompt by prompt."""

    said: Mapping[str, Action]
    """Each prompt by its id, with the ids that red read and sampled."""

    answered: Mapping[MartAnswer, Action]
    """The same of each answer; of two that are equal in every figure the first."""


class KeptRound(NamedTuple):
    """What is learned from a round, and how it goes on."""

    offspring: tuple[Offspring, ...]
    """Red's: those of the selection, less copies."""

    lessons: tuple[Lesson, ...]
    """The target's."""

    parents: tuple[MartPrompt, ...]
    """P_adv of the next round: the children of the offspring, or a seeded part of them."""

    end: RoundEnd | None
    """Why to stop after this round; None: go on."""

    figures: dict[str, Any]
    """Counts of everything as JSON data, for the log and the lineage of members."""


def play_round(context: DialogueContext, planned: MartRound, policies: Mapping[str, Policy]) -> int:
    """Play the blocks of a round that are not in the store yet.

    Args:
        context: The run; its game is one exchange long.
        planned: Who writes after what.
        policies: By version.

    Returns:
        How many blocks were played by this call.

    Raises:
        JudgeError: If the judge failed on more than half of a block.
    """
    fresh = 0
    for name, first, parents in planned.blocks:
        if not context.store.has_block(name):
            tree = _played(context, planned, name, parents, policies)
            check_scored(name, tree.played)
            context.store.put_block(name, [], _to_json(planned, first, parents, tree))
            fresh += 1
    return fresh


def round_in(store: TranscriptStore, number: int) -> PlayedRound:
    """A round as far as it is stored.

    Args:
        store: Of the run.
        number: Of the round.
    """
    prompts: list[MartPrompt] = []
    answers: list[MartAnswer] = []
    said: dict[str, Action] = {}
    answered: dict[MartAnswer, Action] = {}
    for name in (one for one in store.block_names() if one.startswith(f"{PREFIX}{number}/")):
        data = cast("dict[str, Any]", store.block_data(name))
        for item in data["prompts"]:
            prompts.append(MartPrompt(**item["prompt"]))
            said[prompts[-1].id] = action_from_json(item["action"])
        for item in data["answers"]:
            answers.append(scored_answer(item["prompt_id"], item["text"], verdict_from_json(item["verdict"])))
            answered.setdefault(answers[-1], action_from_json(item["action"]))
    return PlayedRound(tuple(prompts), tuple(answers), said, answered)


def keep_round(
    played: PlayedRound,
    parents: Sequence[MartPrompt],
    thresholds: MartThresholds,
    *,
    new_only: bool = True,
    max_parents: int | None = None,
    rng: np.random.Generator,
) -> KeptRound:
    """Select from a round, and from what succeeded the parents of the next one.

    A prompt without a word has no part in it (ours), and with `new_only` neither has a success that says what its parent, or
    an earlier success of the round, says already: red would learn to copy (ours; the paper does not say).

    Args:
        played: The whole round.
        parents: Of the round.
        thresholds: Of the selection.
        new_only: Whether copies are left out.
        max_parents: At most so many go on, drawn at random; None: all (as published).
        rng: Consumed.
    """
    blank = {prompt.id for prompt in played.prompts if not prompt.text.strip()}
    selection = select(
        parents,
        [prompt for prompt in played.prompts if prompt.id not in blank],
        [answer for answer in played.answers if answer.prompt_id not in blank],
        thresholds,
        rng=rng,
    )
    offspring = _new(selection.offspring) if new_only else selection.offspring
    children = tuple(item.child for item in offspring)
    if max_parents is not None and len(children) > max_parents:
        children = tuple(children[place] for place in sorted(rng.permutation(len(children))[:max_parents]))
    end: RoundEnd | None = selection.end
    if selection.offspring and not offspring:
        end = "no prompt succeeded that was new"
    figures = _figures(selection, thresholds, len(blank), len(selection.offspring) - len(offspring), children)
    return KeptRound(offspring, selection.lessons, children, end, {**figures, "end": end})


def put_selected(store: TranscriptStore, number: int, kept: KeptRound) -> bool:
    """Commit what a round is followed by, unless it is there already; whether it was not.

    Args:
        store: Of the run.
        number: Of the round.
        kept: What was selected.
    """
    if store.has_block(name := f"{_SELECTED}{number}"):
        return False
    store.put_block(name, [], {**kept.figures, "parents": [asdict(parent) for parent in kept.parents]})
    return True


def selected_parents(store: TranscriptStore, number: int) -> tuple[MartPrompt, ...]:
    """The parents that a finished round left; none if there was no such round, or no success in it."""
    data = cast("dict[str, Any]", store.block_data(f"{_SELECTED}{number}"))
    return tuple(MartPrompt(**item) for item in data.get("parents", ()))


def end_of(store: TranscriptStore, number: int) -> str | None:
    """Why the method stopped after a round; None if it goes on, or the round is not finished."""
    return cast("str | None", store.block_data(f"{_SELECTED}{number}").get("end"))


def selected_rounds(store: TranscriptStore) -> list[dict[str, Any]]:
    """The figures of every finished round, the first round's first."""
    names = (f"{_SELECTED}{number}" for number in range(1, 1 + len(store.block_names())))
    found = (store.block_data(name) for name in names if store.has_block(name))
    return [cast("dict[str, Any]", data) for data in found]


def _played(
    context: DialogueContext,
    planned: MartRound,
    name: str,
    parents: Sequence[MartPrompt],
    policies: Mapping[str, Policy],
) -> Tree:
    rng = rng_for(context.seed, name)
    config = context.game.config
    system = "\n\n".join(text for text in (planned.preprompt, config.blue_system_prompt) if text)
    game = replace(context.game, config=replace(config, blue_system_prompt=system))
    asked = {f"{planned.blue} at {t!r}": _drawn_at(policies[planned.blue], t) for t in planned.temperatures}
    pairings = [
        Pairing(
            red=planned.red if planned.number else _PLAIN,
            blue=planned.blue,
            deal=rules.draw_deal(game.config, _goal(planned, parent), rng),
            seed=draw_seed(rng),
        )
        for parent in parents
    ]
    return play_tree(
        game,
        {**policies, **asked, _PLAIN: plain_attacker(_PLAIN)},
        pairings,
        group_size=planned.prompts if planned.number else 1,
        responses=len(planned.temperatures),
        rng=rng,
        repliers=[f"{planned.blue} at {t!r}" for t in planned.temperatures],
    )


def _goal(planned: MartRound, parent: MartPrompt) -> Goal:
    """What red is told, as a goal that lives as long as the block."""
    text = render_after(parent.category, parent.text) if planned.number else parent.text
    return Goal(id=parent.id, text=text, category=parent.category)


def _drawn_at(policy: Policy, temperature: float) -> Policy:
    """The same policy under the same name at a temperature of its own; actions record it."""
    if not isinstance(policy, BackendPolicy):
        raise PolicyError(f"expected a model as the target, which can be drawn at a temperature, got {policy.name}")
    return replace(policy, sampling=replace(policy.sampling, temperature=temperature))


def _to_json(planned: MartRound, first: int, parents: Sequence[MartPrompt], tree: Tree) -> dict[str, Any]:
    prompts: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    numbers = Counter[int]()
    for sibling in tree.siblings:
        parent, number = parents[sibling.group], numbers[sibling.group]
        numbers[sibling.group] += 1
        transcripts = [tree.played[place].transcript for place in sibling.replies]
        prompt = parent
        if planned.number:
            prompt = MartPrompt(
                id=f"round-{planned.number}-{first + sibling.group:05d}-{number}",
                text=transcripts[0].exchanges[0].red,
                category=parent.category,
                parent_id=parent.id,
            )
        prompts.append({"prompt": asdict(prompt), "action": asdict(_action(transcripts[0], "red"))})
        answers += [
            {
                "prompt_id": prompt.id,
                "text": transcript.exchanges[0].blue,
                "verdict": verdict_to_json(transcript.verdicts[0]),
                "action": asdict(_action(transcript, "blue")),
            }
            for transcript in transcripts
        ]
    return {
        "round": planned.number,
        "red": planned.red if planned.number else "",
        "blue": planned.blue,
        "preprompt": planned.preprompt,
        "prompts": prompts,
        "answers": answers,
    }


def _action(transcript: Transcript, role: str) -> Action:
    return next(action for agent, action in transcript.actions if role_of(agent) == role)


def _new(offspring: Sequence[Offspring]) -> tuple[Offspring, ...]:
    """Those that say something else than their parent and than every success before; case and blanks do not count."""
    seen: set[str] = set()
    found = []
    for item in offspring:
        text = _bare(item.child.text)
        if text != _bare(item.parent.text) and text not in seen:
            found.append(item)
        seen.add(text)
    return tuple(found)


def _bare(text: str) -> str:
    return " ".join(text.split()).strip("\"'“” ").casefold()


def _figures(
    selection: MartSelection,
    thresholds: MartThresholds,
    num_blank: int,
    num_copies: int,
    parents: Sequence[MartPrompt],
) -> dict[str, Any]:
    share = selection.violation_share
    return {
        "thresholds": asdict(thresholds),
        "prompts": selection.prompts._asdict(),
        "answers": selection.answers._asdict(),
        "num_blank": num_blank,
        "num_successes": len(selection.offspring),
        "num_copies": num_copies,
        "num_lessons": len(selection.lessons),
        "num_parents": len(parents),
        "violation_share": None if np.isnan(share) else share,
    }
