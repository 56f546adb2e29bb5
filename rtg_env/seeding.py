"""Seeds by place: what is sampled depends on where a sentence stands, not on what it is computed with."""

from __future__ import annotations

from typing import Final

_MASK: Final = 2**64 - 1


def turn_seed(dialogue_seed: int, turn: int, is_blue: bool) -> int:
    """Seed of one sentence, in [0, 2**63): decided by the dialogue's seed and the place in it, not by who speaks.

    The output function of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), once over the seed and
    once over that and the place; in plain integers, because thousands are drawn per turn.
    """
    return _mixed(_mixed(dialogue_seed) + 2 * turn + is_blue + 1) >> 1


def _mixed(number: int) -> int:
    number = number + 0x9E3779B97F4A7C15 & _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
