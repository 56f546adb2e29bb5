"""Numbers from texts, for the offline judge: hashed n-grams, statistics, and sentences that only frame an answer.

Nothing is learnt here and no vocabulary is stored: n-grams are hashed (Weinberger et al. 2009, arXiv:0902.2206), so the
weights of a judge hold no text of the answers it was trained on. Every function takes any `str` (lone surrogates, NULs,
a megabyte of one letter) and runs in time linear in a capped length.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rtg_env.judges.lexicon import (
    COMMANDS,
    COPULAS,
    DISCLAIMER_CUES,
    FIRST_PERSON,
    FUNCTION_WORDS,
    NEGATIONS,
    OPENER_CUES,
    REFUSAL_CUES,
    SECOND_PERSON,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HASH_BITS: Final = 15
"""Each block of n-grams has 2 ** HASH_BITS buckets."""

NUM_BUCKETS: Final = 1 << HASH_BITS
MAX_CHARS: Final = 6000
"""Longer texts are cut in the middle: the first two thirds of this and the last third are read."""

STAT_NAMES: Final = (
    "log_words",
    "distinct_words",
    "distinct_pairs",
    "compressibility",
    "function_words",
    "letters",
    "digits",
    "long_words",
    "log_sentences",
    "questions",
    "quotes",
    "list_lines",
    "first_person",
    "second_person",
    "negations",
    "commands",
    "past_tense",
    "copulas",
    "exclamations",
)
"""Names of the columns of `text_stats`."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")
_LIST_LINE = re.compile(r"^\s{0,8}(?:[-*•]|\d{1,3}[.)]|step \d{1,3})", re.MULTILINE)
_SPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """The text as all features read it: capped, well-formed, without control characters, quotes made straight."""
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS * 2 // 3] + "\n" + text[-(MAX_CHARS // 3) :]
    text = text.encode("utf-8", "replace").decode("utf-8")
    text = (
        unicodedata.normalize("NFKC", text)[: 2 * MAX_CHARS]
        .replace("’", "'")
        .replace("‘", "'")
        .replace("“", '"')
        .replace("”", '"')
    )
    return "".join(char if char >= " " or char == "\n" else " " for char in text)


def words(text: str) -> list[str]:
    """Lower-case words of a cleaned text."""
    return _WORD.findall(text.lower())


def sentences(text: str) -> list[str]:
    """Non-empty sentences and lines of a cleaned text."""
    return [part for part in (piece.strip() for piece in _SENTENCE_END.split(text)) if part]


def stem(word: str) -> str:
    """A crude stem: enough to match `lies` with `lie` and `taping` with `tape`."""
    word = word.removesuffix("'s")
    for suffix in ("ings", "ing", "edly", "ies", "ied", "ers", "ed", "es", "er", "ly", "s", "e", "y"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def content_stems(tokens: list[str]) -> list[str]:
    """Stems of the words that carry meaning, in order."""
    return [stem(token) for token in tokens if token not in FUNCTION_WORDS]


@dataclass(frozen=True, slots=True)
class Framing:
    """A text without the sentences that only announce, refuse or disclaim."""

    body: str
    """What is left."""

    num_refusals: int
    """Sentences removed or kept that refuse."""

    refusal_first: bool
    """Whether one of the first two sentences refuses."""

    opener: bool
    """Whether an announcing sentence was removed."""

    disclaimer: bool
    """Whether a disclaiming sentence was removed."""


def strip_framing(text: str) -> Framing:
    """Remove short sentences that announce, refuse or disclaim, so that a polite frame cannot hide what it frames.

    A sentence that was said before is removed as well: repeating a harmless one must not drown the rest.

    Args:
        text: A cleaned text.
    """
    kept: list[str] = []
    said: set[str] = set()
    refusals, opener, disclaimer, refusal_first = 0, False, False, False
    for index, sentence in enumerate(sentences(text)):
        lowered = sentence.lower()[:240]
        if sentence in said:
            continue
        said.add(sentence)
        if is_refusal_sentence(lowered):
            refusals += 1
            refusal_first = refusal_first or index < 2
        elif index < 2 and len(lowered) < 160 and lowered.startswith(OPENER_CUES):
            opener = True
            kept.extend(_after_opener(sentence))
        elif len(lowered) < 240 and any(cue in lowered for cue in DISCLAIMER_CUES):
            disclaimer = True
        else:
            kept.append(sentence)
    return Framing("\n".join(kept), refusals, refusal_first, opener, disclaimer)


def is_refusal_sentence(lowered: str) -> bool:
    """Whether a lower-case sentence contains a phrase of refusal."""
    return any(cue in lowered for cue in REFUSAL_CUES)


def _after_opener(sentence: str) -> list[str]:
    """What follows the announcement within its own sentence, if that is more than a few words."""
    for mark in (":", "! ", ", "):
        _, found, rest = sentence.partition(mark)
        if found:
            return [rest.strip()] if len(rest) > 24 else []
    return [sentence] if len(sentence) > 80 else []


@lru_cache(maxsize=65536)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))


def word_hashes(tokens: list[str]) -> NDArray[np.uint64]:
    """[W] stable 32-bit hash of each word, as uint64."""
    return np.fromiter((_word_hash(token) for token in tokens), dtype=np.uint64, count=len(tokens))


def word_ngrams(tokens: list[str], *, salt: int = 0) -> tuple[IntArray, FloatArray]:
    """Hashed words and word pairs.

    Returns:
        [K] buckets in [0, NUM_BUCKETS) and [K] values: signed, sublinear in the count, of unit length.
    """
    single = word_hashes(tokens)
    pairs = single[:-1] * np.uint64(0x9E3779B1) + single[1:] + np.uint64(1)
    return _buckets(np.concatenate([single, pairs]), salt)


def char_ngrams(text: str, *, salt: int = 1) -> tuple[IntArray, FloatArray]:
    """Hashed runs of 3, 4 and 5 characters of a cleaned, lower-case text.

    Returns:
        [K] buckets and [K] values, as `word_ngrams`.
    """
    codes = np.frombuffer(f" {_SPACE.sub(' ', text.lower()).strip()} ".encode("utf-32-le", "replace"), dtype=np.uint32)
    rolled = codes.astype(np.uint64)
    parts = []
    for size in range(2, 6):
        if len(codes) < size:
            break
        rolled = rolled[:-1] * np.uint64(0x100000001B3) + codes[size - 1 :]
        if size > 2:
            parts.append(rolled + np.uint64(size))
    return _buckets(np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64), salt)


def _buckets(hashes: NDArray[np.uint64], salt: int) -> tuple[IntArray, FloatArray]:
    mixed = hashes + np.uint64((salt * 0x9E3779B97F4A7C15) % (1 << 64))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    keys, counts = np.unique(mixed >> np.uint64(63 - HASH_BITS), return_counts=True)
    values = (1.0 + np.log(counts)) * np.where(keys & np.uint64(1), 1.0, -1.0)
    norm = float(np.linalg.norm(values))
    return (keys >> np.uint64(1)).astype(np.int64), values / norm if norm else values


def text_stats(text: str, tokens: list[str]) -> FloatArray:
    """Statistics that tell prose from noise and one form of answer from another.

    Args:
        text: A cleaned text.
        tokens: Its words.

    Returns:
        [len(STAT_NAMES)] numbers, mostly shares in [0, 1].
    """
    num = max(len(tokens), 1)
    parts = sentences(text)
    pairs = set(pairwise(tokens))
    starts = [words(part[:40])[:1] for part in parts]
    chars = max(len(text), 1)
    return np.array(
        [
            np.log1p(len(tokens)) / 5.0,
            len(set(tokens)) / num,
            len(pairs) / max(len(tokens) - 1, 1),
            compressibility(text),
            _share(tokens, FUNCTION_WORDS),
            sum(map(str.isalpha, text)) / chars,
            sum(map(str.isdigit, text)) / chars,
            sum(len(token) > 9 for token in tokens) / num,
            np.log1p(len(parts)) / 3.0,
            text.count("?") / max(len(parts), 1),
            min(text.count('"') / 4.0, 1.0),
            min(len(_LIST_LINE.findall(text)) / 5.0, 1.0),
            _share(tokens, FIRST_PERSON) * 5.0,
            _share(tokens, SECOND_PERSON) * 5.0,
            _share(tokens, NEGATIONS) * 5.0,
            sum(bool(start) and start[0] in COMMANDS for start in starts) / max(len(starts), 1),
            sum(token.endswith("ed") for token in tokens) / num * 5.0,
            _share(tokens, COPULAS) * 5.0,
            min(text.count("!") / 3.0, 1.0),
        ]
    )


def compressibility(text: str) -> float:
    """Share of the bytes that zlib saves, 0 for short varied text, near 1 for repetition."""
    raw = text.encode("utf-8", "replace")
    if len(raw) < 24:
        return 0.0
    return max(0.0, 1.0 - (len(zlib.compress(raw, 1)) - 11) / len(raw))


def function_word_share(tokens: list[str]) -> float:
    """Share of function words: about 0.45 in English prose, near 0 in a list of keywords."""
    return _share(tokens, FUNCTION_WORDS)


def _share(tokens: list[str], lexicon: frozenset[str]) -> float:
    return sum(token in lexicon for token in tokens) / max(len(tokens), 1)
