"""Preference pairs of both sides, from one tuple log (SEAS, arXiv:2408.02632).

Red: of each seed the attack with the highest share of unsafe replies is chosen, the one with the lowest is rejected; one
pair a seed at most, none if the shares are equal. Target: of each attack the first safe reply is chosen, the first unsafe one
rejected; a seeded 2,000 of them are kept, and mixed with general pairs. Of equals the first seen wins. A verdict that cannot
be read counts for neither side.

Deviations from the published scripts, all ours: verdicts are read strictly (`rtg_solvers.tuples`); an attack is ranked only
if at least half of its replies have a verdict; a pair of two equal texts is none.

Whatever is not used is counted once, with the first reason that holds: used + dropped is the number there was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from rtg_env.errors import ConfigError
from rtg_solvers.tuples import AttackTuple, Place

GENERAL_PAIRS: Final = (7000, 14000, 14000)
"""General pairs beside the target's own, in iterations 1, 2 and 3. They keep general ability; alone, they made the target less safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """Rules of both builders; the defaults are the published ones."""

    min_margin: float = 0.0
    """Red: least difference of the two unsafe shares, in [0, 1]; equal shares never make a pair."""

    require_success_and_failure: bool = False
    """Red: the chosen attack must succeed (more than half of its verdicts unsafe), the rejected must not."""

    replies_per_attack: int | None = None
    """Red: how many replies m each attack was to get; ceil(m / 2) verdicts rank it. None: as many as the log holds."""

    dedupe: bool = True
    """Attacks of equal text are one: those of one seed for red, those of the whole log for the target."""

    max_chars: int | None = 3000
    """Longer attacks (red) and replies (target) are dropped; None: no limit."""

    max_target_pairs: int | None = 2000
    """Target: so many pairs are drawn from all; None: all are kept."""

    flipped: bool = False
    """The control: chosen and rejected change places, and whoever learns from such pairs must get worse."""

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        if not 0.0 <= self.min_margin <= 1.0:
            raise ConfigError(f"expected min_margin in [0, 1], got {self.min_margin!r}; 0 is published")
        for name in ("replies_per_attack", "max_chars", "max_target_pairs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"expected {name} to be at least 1, got {value!r}; None means no such number")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, the better one first."""

    prompt: str
    """Red: what it read, empty if the log does not say. Target: the attack."""

    chosen: str
    """Preferred."""

    rejected: str
    """Not."""

    chosen_place: Place | None = None
    """Where it stands in the log; None for pairs from elsewhere."""

    rejected_place: Place | None = None
    """The same of the other."""

    chosen_unsafe_share: float | None = None
    """Share of its verdicts that are unsafe: 0 for a target's chosen reply."""

    rejected_unsafe_share: float | None = None
    """The same of the other."""


class Tally(NamedTuple):
    """What became of things of one kind; `used` and the numbers in `dropped` sum up to `total`."""

    total: int
    """How many there were."""

    used: int
    """How many went into a pair, or into the ranking that made one."""

    dropped: Mapping[str, int]
    """Reason to number, only reasons that occurred."""


class PairLengths(NamedTuple):
    """How long the two sides of some pairs are: who learns from them may learn to say less, or more."""

    chosen: float
    """Words of a chosen sentence, on average."""

    rejected: float
    """The same of a rejected one."""

    shorter: float
    """Share of pairs whose chosen sentence has fewer words; equal lengths count half."""


@dataclass(frozen=True, slots=True)
class BuiltPairs:
    """Pairs of one side, and what became of everything else."""

    pairs: tuple[PreferencePair, ...]
    """In the order of the log."""

    tallies: Mapping[str, Tally]
    """By kind of thing: seeds, attacks, replies."""

    @property
    def lengths(self) -> PairLengths | None:
        """Of the pairs; None if there are none."""
        if not self.pairs:
            return None
        words_N2 = np.array([(len(pair.chosen.split()), len(pair.rejected.split())) for pair in self.pairs])
        shorter = (1 + np.sign(words_N2[:, 1] - words_N2[:, 0])) / 2
        chosen, rejected = words_N2.mean(axis=0)
        return PairLengths(float(chosen), float(rejected), float(shorter.mean()))


@dataclass(slots=True, eq=False)
class _Attack:
    """An attack, or several of equal text, as their tuples come in."""

    first: AttackTuple
    indices: set[tuple[str, int]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    replies: list[AttackTuple] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return Place(self.first.seed_id, self.first.attack_index)

    @property
    def valid(self) -> int:
        return self.counts["unsafe"] + self.counts["safe"]

    @property
    def unsafe_share(self) -> float:
        """Equal counts give equal floats: division rounds correctly."""
        return self.counts["unsafe"] / self.valid


def red_pairs(tuples: Iterable[AttackTuple], settings: PairSettings | None = None) -> BuiltPairs:
    """Pairs for red: per seed its strongest attack over its weakest one.

    Args:
        tuples: In the order in which they were played.
        settings: Rules.

    Returns:
        Tallies of `seeds` (used: it gave a pair), `attacks` (used: ranked) and `replies` (used: their verdict counted).
    """
    settings = settings or PairSettings()
    seeds: dict[str, dict[object, _Attack]] = {}
    for item in tuples:
        key = item.attack.strip() if settings.dedupe else item.attack_index
        _collect(seeds.setdefault(item.seed_id, {}), key, item)
    reasons = {kind: Counter[str]() for kind in ("seeds", "attacks", "replies")}
    pairs, num_ranked, num_verdicts = [], 0, 0
    for attacks in seeds.values():
        ranked = []
        for attack in attacks.values():
            reasons["attacks"]["same text as another of its seed"] += len(attack.indices) - 1
            reasons["replies"]["no valid verdict"] += attack.counts["invalid"]
            if why := _unranked(attack, settings):
                reasons["attacks"][why] += 1
                reasons["replies"]["its attack was dropped"] += attack.valid
            else:
                ranked.append(attack)
        num_ranked += len(ranked)
        num_verdicts += sum(attack.valid for attack in ranked)
        found = _red_pair(ranked, settings)
        if isinstance(found, str):
            reasons["seeds"][found] += 1
        else:
            pairs.append(found)
    used = {"seeds": len(pairs), "attacks": num_ranked, "replies": num_verdicts}
    return BuiltPairs(_as_told(pairs, settings), _tallies(_totals(seeds.values()), used, reasons))


def target_pairs(
    tuples: Iterable[AttackTuple], settings: PairSettings | None = None, *, rng: np.random.Generator
) -> BuiltPairs:
    """Pairs for the target: per attack its first safe reply over its first unsafe one, a seeded choice of them.

    Args:
        tuples: In the order in which they were played.
        settings: Rules.
        rng: Consumed if there are more than `max_target_pairs`.

    Returns:
        Tallies of `attacks` (used: it gave a pair) and `replies` (used: they stand in a pair).
    """
    settings = settings or PairSettings()
    attacks: dict[object, _Attack] = {}
    for item in tuples:
        _collect(attacks, item.attack.strip() if settings.dedupe else item.place[:2], item)
    reasons = {kind: Counter[str]() for kind in ("attacks", "replies")}
    pairs: list[PreferencePair] = []
    spare: list[int] = []
    for attack in attacks.values():
        reasons["attacks"]["same text as another"] += len(attack.indices) - 1
        usable = _usable_replies(attack, settings, reasons["replies"])
        found = _target_pair(attack, usable)
        if isinstance(found, str):
            reasons["attacks"][found] += 1
            reasons["replies"]["its attack gave no pair"] += len(usable)
        else:
            pairs.append(found)
            spare.append(len(usable) - 2)
    kept = _drawn(len(pairs), settings.max_target_pairs, rng)
    beyond = len(pairs) - len(kept)
    reasons["attacks"]["beyond the number of pairs wanted"] += beyond
    reasons["replies"]["of a pair beyond the number wanted"] += 2 * beyond
    reasons["replies"]["not the first of its verdict"] += sum(spare)
    used = {"attacks": len(kept), "replies": 2 * len(kept)}
    totals = _totals([attacks])
    del totals["seeds"]
    return BuiltPairs(_as_told([pairs[index] for index in kept], settings), _tallies(totals, used, reasons))


def mix_pairs(
    own: Sequence[PreferencePair], general: Sequence[PreferencePair], *, num_general: int, rng: np.random.Generator
) -> list[PreferencePair]:
    """The target's pairs and a random choice of general ones, shuffled; red gets no general data.

    Args:
        own: All are kept; none for the ablation on general pairs alone.
        general: From a file of the user's.
        num_general: How many of them; `GENERAL_PAIRS` in the paper.
        rng: Consumed.

    Raises:
        ConfigError: If there are not so many.
    """
    if not 0 <= num_general <= len(general):
        raise ConfigError(
            f"expected num_general from 0 to the {len(general)} general pairs there are, got {num_general}; lower it"
        )
    chosen = (
        [general[int(index)] for index in rng.choice(len(general), size=num_general, replace=False)] if general else []
    )
    mixed = [*own, *chosen]
    return [mixed[int(index)] for index in rng.permutation(len(mixed))]


def _collect(attacks: dict[object, _Attack], key: object, item: AttackTuple) -> None:
    attack = attacks.get(key)
    if attack is None:
        attack = attacks[key] = _Attack(item)
    attack.indices.add((item.seed_id, item.attack_index))
    attack.counts[item.verdict] += 1
    attack.replies.append(item)


def _unranked(attack: _Attack, settings: PairSettings) -> str:
    """Why an attack takes no part in red's ranking; empty if it does."""
    if why := _unfit(attack.first.attack, settings):
        return why
    planned = settings.replies_per_attack or len(attack.replies)
    if attack.valid < math.ceil(planned / 2):
        return "fewer than half of its replies have a verdict"
    return ""


def _red_pair(ranked: Sequence[_Attack], settings: PairSettings) -> PreferencePair | str:
    """The pair of a seed, or why there is none."""
    if not ranked:
        return "no attack can be ranked"
    best = max(ranked, key=lambda attack: attack.unsafe_share)  # of equals both take the first
    worst = min(ranked, key=lambda attack: attack.unsafe_share)
    high, low = best.unsafe_share, worst.unsafe_share
    if high == low:
        kinds = {0.0: "all replies safe", 1.0: "all replies unsafe"}
        return kinds.get(high, "all attacks equally strong" if len(ranked) > 1 else "one attack only")
    if high - low < settings.min_margin - 1e-9:  # 3/5 - 2/5 is a little less than 0.2
        return "difference below min_margin"
    if settings.require_success_and_failure and not (high > 0.5 >= low):
        return "no success or no failure"
    if best.first.attack.strip() == worst.first.attack.strip():  # only without dedupe
        return "chosen and rejected are equal"
    return PreferencePair(
        prompt=best.first.prompt,
        chosen=best.first.attack,
        rejected=worst.first.attack,
        chosen_place=best.place,
        rejected_place=worst.place,
        chosen_unsafe_share=high,
        rejected_unsafe_share=low,
    )


def _usable_replies(attack: _Attack, settings: PairSettings, dropped: Counter[str]) -> list[AttackTuple]:
    """Replies that may stand in a pair; the others are counted."""
    usable = []
    for item in attack.replies:
        why = "no valid verdict" if item.verdict == "invalid" else _unfit(item.reply, settings)
        if why:
            dropped[why] += 1
        else:
            usable.append(item)
    return usable


def _target_pair(attack: _Attack, usable: Sequence[AttackTuple]) -> PreferencePair | str:
    """The pair of an attack, or why there is none."""
    if not attack.first.attack.strip():
        return "empty"
    safe = next((item for item in usable if item.verdict == "safe"), None)
    unsafe = next((item for item in usable if item.verdict == "unsafe"), None)
    if safe is None or unsafe is None:
        return "no reply can be used" if not usable else "all replies unsafe" if safe is None else "all replies safe"
    if safe.reply.strip() == unsafe.reply.strip():
        return "chosen and rejected are equal"
    return PreferencePair(
        prompt=attack.first.attack,
        chosen=safe.reply,
        rejected=unsafe.reply,
        chosen_place=safe.place,
        rejected_place=unsafe.place,
        chosen_unsafe_share=0.0,
        rejected_unsafe_share=1.0,
    )


def _as_told(pairs: Sequence[PreferencePair], settings: PairSettings) -> tuple[PreferencePair, ...]:
    """The pairs as the settings want them labelled."""
    return tuple(map(_flipped, pairs)) if settings.flipped else tuple(pairs)


def _flipped(pair: PreferencePair) -> PreferencePair:
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_place=pair.rejected_place,
        rejected_place=pair.chosen_place,
        chosen_unsafe_share=pair.rejected_unsafe_share,
        rejected_unsafe_share=pair.chosen_unsafe_share,
    )


def _unfit(text: str, settings: PairSettings) -> str:
    """Why nothing can be learnt from a text; empty if something can."""
    length = len(text.strip())
    if not length:
        return "empty"
    return f"over {settings.max_chars} characters" if settings.max_chars and length > settings.max_chars else ""


def _drawn(count: int, wanted: int | None, rng: np.random.Generator) -> list[int]:
    """Indices that are kept, in order."""
    if wanted is None or count <= wanted:
        return list(range(count))
    return sorted(int(index) for index in rng.choice(count, size=wanted, replace=False))


def _totals(groups: Iterable[Mapping[object, _Attack]]) -> dict[str, int]:
    """How much there was, counted from what came in and not from what was used."""
    totals = {"seeds": 0, "attacks": 0, "replies": 0}
    for attacks in groups:
        totals["seeds"] += 1
        totals["attacks"] += sum(len(attack.indices) for attack in attacks.values())
        totals["replies"] += sum(len(attack.replies) for attack in attacks.values())
    return totals


def _tallies(
    totals: Mapping[str, int], used: Mapping[str, int], reasons: Mapping[str, Counter[str]]
) -> dict[str, Tally]:
    return {kind: Tally(totals[kind], used[kind], dict(+reasons[kind])) for kind in totals}
