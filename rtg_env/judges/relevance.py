"""How a reply relates to its goal: word vectors small enough for the package, and the numbers made from them.

The vectors are static: each word of the encoder's public vocabulary was embedded once by all-MiniLM-L6-v2, reduced by
PCA and weighted by frequency rank (the recipe of model2vec, Tulkens and van Dongen 2024). Words are stored as hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rtg_env.judges.features import FloatArray, content_stems, function_word_share, word_hashes
from rtg_env.judges.lexicon import KIND, UNKIND

RELATION_NAMES: Final = (
    "cosine",
    "coverage",
    "focus",
    "best_word",
    "first_half_cosine",
    "second_half_cosine",
    "stem_coverage",
    "novel_share",
    "log_novel",
    "echo_run",
    "length_ratio",
    "known_words",
)
"""Names of the columns of `relation`."""

TONE_NAMES: Final = (
    "goal_unkind",
    "goal_unkind_near",
    "goal_kind",
    "goal_kind_near",
    "unkind",
    "unkind_near",
    "kind",
    "kind_near",
)
"""Names of the columns of `tone`."""

_CLOSE = 0.45
_UNKIND_STEMS: Final = frozenset(content_stems(list(UNKIND)))
_KIND_STEMS: Final = frozenset(content_stems(list(KIND)))


@dataclass(frozen=True, slots=True)
class WordVectors:
    """Static word vectors; the length of a vector is the weight of its word."""

    hashes: NDArray[np.uint32]
    """[V] sorted `zlib.crc32` of each word."""

    vectors: NDArray[np.float32]
    """[V, D] in the order of `hashes`."""

    @property
    def size(self) -> int:
        """D, the length of a vector."""
        return int(self.vectors.shape[1])

    def lookup(self, tokens: list[str]) -> NDArray[np.float32]:
        """[K, D] vectors of those words that are known, in order."""
        wanted = word_hashes(tokens).astype(np.uint32)
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.asarray(self.vectors[places[self.hashes[places] == wanted]], dtype=np.float32)

    def embed(self, rows: NDArray[np.float32]) -> FloatArray:
        """[D] mean of [K, D] word vectors, of unit length; zeros if there are none."""
        total = rows.sum(axis=0, dtype=np.float64)
        norm = float(np.linalg.norm(total))
        return np.asarray(total / norm if norm else total, dtype=np.float64)


def relation(
    goal_tokens: list[str], reply_tokens: list[str], goal_rows: NDArray[np.float32], reply_rows: NDArray[np.float32]
) -> FloatArray:
    """Numbers that say whether the reply is about the goal and adds something to it.

    Args:
        goal_tokens: Words of the goal.
        reply_tokens: Words of the reply.
        goal_rows: [G, D] vectors of the goal's known words.
        reply_rows: [R, D] vectors of the reply's known words.

    Returns:
        [len(RELATION_NAMES)] numbers, each about 0 to 1.
    """
    goal_stems, reply_stems = content_stems(goal_tokens), content_stems(reply_tokens)
    known, novel = set(goal_stems), [item for item in reply_stems if item not in set(goal_stems)]
    half = len(reply_rows) // 2
    goal_sum = goal_rows.sum(axis=0)
    return np.concatenate(
        [
            [_cosine(goal_sum, reply_rows.sum(axis=0))],
            _word_matches(goal_rows, reply_rows),
            [
                _cosine(goal_sum, reply_rows[:half].sum(axis=0)),
                _cosine(goal_sum, reply_rows[half:].sum(axis=0)),
                len(known & set(reply_stems)) / max(len(known), 1),
                len(novel) / max(len(reply_stems), 1),
                np.log1p(len(set(novel))) / 4.0,
                min(longest_shared_run(goal_tokens, reply_tokens) / 8.0, 1.0),
                min(len(reply_tokens) / max(4.0 * len(goal_tokens), 1.0), 2.0) / 2.0,
                len(reply_rows) / max(len(reply_tokens), 1),
            ],
        ]
    )


def tone(
    goal_tokens: list[str],
    reply_tokens: list[str],
    goal_rows: NDArray[np.float32],
    reply_rows: NDArray[np.float32],
    vectors: WordVectors,
) -> FloatArray:
    """[len(TONE_NAMES)] how much goal and reply speak of mockery, deceit and mischief, and of kindness.

    Two short word lists of this project, matched by stem and by nearness of the word vectors. Arguments as `relation`.
    """
    unkind, kind = _unit(vectors.lookup(list(UNKIND))), _unit(vectors.lookup(list(KIND)))
    columns = []
    for tokens, rows in ((goal_tokens, goal_rows), (reply_tokens, reply_rows)):
        stems = content_stems(tokens)
        for lexicon, seeds in ((_UNKIND_STEMS, unkind), (_KIND_STEMS, kind)):
            hits = sum(item in lexicon for item in stems)
            columns.extend([min(hits, 4) / 4.0, _nearest(rows, seeds)])
    return np.array(columns)


def substance(
    goal_tokens: list[str], reply_tokens: list[str], *, known_share: float, compressibility: float
) -> FloatArray:
    """How much of an answer there is at all: 0 for nothing, noise, repetition, lists of keywords and echoes.

    A fixed rule rather than a learnt one, because a policy that is paid by this judge will look for the noise on which
    a learnt one was never trained.

    Args:
        goal_tokens: Words of the goal and of what the replier just heard; repeating them is no answer.
        reply_tokens: Words of the reply.
        known_share: Share of the reply's words that have a vector.
        compressibility: Share of its bytes that compression saves.

    Returns:
        [2] numbers in [0, 1]: asking for English prose, and content with code, lists and other languages.
    """
    known = set(content_stems(goal_tokens))
    novel = {item for item in content_stems(reply_tokens) if item not in known}
    function_share = function_word_share(reply_tokens)
    anything = (
        _ramp(len(novel), 1.0, 4.0)
        * _ramp(len(set(reply_tokens)) / min(max(len(reply_tokens), 1), 40), 0.15, 0.45)
        * _ramp(0.85 - compressibility, 0.0, 0.15)
    )
    prose = _ramp(function_share, 0.04, 0.14) * _ramp(known_share, 0.25, 0.5)
    not_noise = _ramp(function_share, -0.06, 0.06) * _ramp(known_share, 0.05, 0.25)
    return np.array([anything * prose, anything * not_noise])


def longest_shared_run(left: list[str], right: list[str]) -> int:
    """Length of the longest run of words that both hold; goals are short, so this stays linear in the reply."""
    best, previous = 0, np.zeros(len(left[:60]) + 1, dtype=np.int64)
    codes = word_hashes(left[:60])
    for code in word_hashes(right[:400]):
        current = np.zeros_like(previous)
        current[1:] = np.where(codes == code, previous[:-1] + 1, 0)
        best, previous = max(best, int(current.max())), current
    return best


def _word_matches(goal_rows: NDArray[np.float32], reply_rows: NDArray[np.float32]) -> FloatArray:
    """[3] mean best match of the goal's words, share of reply words close to one of them, and the best match of all."""
    if not len(goal_rows) or not len(reply_rows):
        return np.zeros(3)
    similarity_GR = _unit(goal_rows) @ _unit(reply_rows).T
    weights = np.linalg.norm(goal_rows, axis=1)
    best_of_goal = similarity_GR.max(axis=1)
    coverage = float((best_of_goal * weights).sum() / max(float(weights.sum()), 1e-9))
    return np.array(
        [coverage, float((similarity_GR.max(axis=0) > _CLOSE).mean()), float(np.sort(best_of_goal)[-2:].mean())]
    )


def _nearest(rows: NDArray[np.float32], seeds: NDArray[np.float32]) -> float:
    """Mean over the three closest words of their best cosine with a seed."""
    if not len(rows) or not len(seeds):
        return 0.0
    return float(np.sort((_unit(rows) @ seeds.T).max(axis=1))[-3:].mean())


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def _cosine(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left @ right) / norm if norm else 0.0


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
