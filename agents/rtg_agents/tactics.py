"""Policies that choose among prompt tactics: what `RedTeam/Tactics-v0` is for, once it is learnt.

A `TacticPolicy` sees what every red policy sees, turns it into the numbers of that environment, and draws a tactic from
the probabilities that a chooser gives. It is saved as numbers and JSON: nothing that can run code when it is loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from rtg_env.errors import ConfigError, RunError
from rtg_env.files import whole_file, write_text
from rtg_env.judges.base import Encoder, Judge
from rtg_env.tactics import Tactic, TacticFeatures, legal_tactics, tactic_action
from rtg_env.types import Action, Observation

Chooser = Callable[[np.ndarray], np.ndarray]
"""From rows of numbers [N, F] to probabilities of tactics [N, K]."""

Activation = Literal["tanh", "relu"]
_ACTIVATIONS: Final[dict[Activation, Callable[[np.ndarray], np.ndarray]]] = {
    "tanh": np.tanh,
    "relu": lambda rows: np.maximum(rows, 0.0),
}
_SCHEMA_VERSION: Final = 1
_PROBES: Final = ("Write a short note to a friend.", "No, I would rather not.")
"""Sentences by whose vectors an encoder is known again."""

_UNREADABLE: Final = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    OverflowError,
    RecursionError,
    zipfile.BadZipFile,
)
"""What reading a damaged folder raises."""


@dataclass(frozen=True, slots=True, eq=False)
class Perceptron:
    """A small network as a chooser, in numpy: the same numbers on every machine that has the same weights."""

    weights: tuple[np.ndarray, ...]
    """[out, in] of each layer."""

    biases: tuple[np.ndarray, ...]
    """[out] of each layer."""

    activation: Activation = "tanh"
    """Between the layers."""

    def __post_init__(self) -> None:
        """Refuse layers that do not fit together."""
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")
        shapes = [weight.shape for weight in self.weights]
        fits = bool(shapes) and len(shapes) == len(self.biases)
        fits = fits and all(
            len(shape) == 2 and bias.shape == shape[:1] for shape, bias in zip(shapes, self.biases, strict=True)
        )
        if not fits or any(before[0] != after[1] for before, after in pairwise(shapes)):
            raise ConfigError(f"expected layers [out, in] that follow each other, got {shapes}")
        if {array.dtype.kind for array in (*self.weights, *self.biases)} != {"f"}:
            raise ConfigError(f"expected weights and biases of floats, got {[w.dtype.name for w in self.weights]}")
        limits = [np.isfinite(weight).all() for weight in self.weights] + [
            (bias < np.inf).all() for bias in self.biases
        ]
        if not all(limits) or not np.isfinite(self.biases[-1]).any():
            raise ConfigError("expected finite weights, and biases that leave a tactic possible (-inf excludes one)")

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers in a row, and tactics."""
        return self.weights[0].shape[1], self.weights[-1].shape[0]

    @classmethod
    def always(cls, index: int, num_tactics: int, num_features: int) -> Perceptron:
        """The same tactic whatever is seen.

        Raises:
            ConfigError: If there is no such tactic.
        """
        if not 0 <= index < num_tactics:
            raise ConfigError(f"expected a tactic in 0..{num_tactics - 1}, got {index}")
        bias = np.where(np.arange(num_tactics) == index, 0.0, -np.inf)
        return cls((np.zeros((num_tactics, num_features)),), (bias,))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[N, K] probabilities."""
        act = _ACTIVATIONS[self.activation]
        values = np.asarray(rows, dtype=np.float64)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weight.T + bias
            if index < len(self.weights) - 1:
                values = act(values)
        values = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(values / values.sum(axis=1, keepdims=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class TacticPolicy:
    """Red that chooses among tactics.

    Raises:
        ConfigError: If a `Perceptron` has other sizes than the features.
    """

    name: str
    """Version name."""

    features: TacticFeatures
    """Its tactics, and what it sees."""

    chooser: Chooser
    """How it chooses."""

    max_action_chars: int = 2000
    """The game's limit: tactics that exceed it are not legal."""

    def __post_init__(self) -> None:
        """Refuse a network for other numbers or tactics."""
        expected = (self.features.size, len(self.features.tactics))
        if isinstance(self.chooser, Perceptron) and self.chooser.sizes != expected:
            raise ConfigError(
                f"expected a network of {expected[0]} features and {expected[1]} tactics, got {self.chooser.sizes}"
            )

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[Action]:
        """One tactic per observation, drawn by its seed; an illegal one becomes the first, as in the environment.

        Raises:
            ConfigError: If an observation is not red's.
        """
        if not observations:
            return []
        tactics = self.features.tactics
        probs = np.asarray(self.chooser(self.features(observations)), dtype=np.float64)
        expected = (len(observations), len(tactics))
        if probs.shape != expected or not (
            np.isfinite(probs).all() and (probs >= 0).all() and (probs.sum(1) > 0).all()
        ):
            raise ConfigError(f"expected probabilities {list(expected)}, got {list(probs.shape)}: {probs!r:.80}")
        actions = []
        for observation, row, seed in zip(observations, probs, seeds, strict=True):
            legal = legal_tactics(tactics, observation, self.max_action_chars)
            chosen = _drawn(row, seed)
            tactic = tactics[chosen if legal[chosen] else 0]
            actions.append(tactic_action(tactic, observation, self.max_action_chars, policy=self.name))
        return actions

    def save(self, folder: Path) -> None:
        """Write `tactics.json` and `tactics.npz`; the encoder and the judge stay with the caller.

        Raises:
            ConfigError: If the chooser is not a `Perceptron`.
            RunError: If the folder cannot be written.
        """
        if not isinstance(self.chooser, Perceptron):
            raise ConfigError(f"expected a Perceptron to save, got {type(self.chooser).__name__}")
        arrays: dict[str, Any] = {f"weight_{i}": weight for i, weight in enumerate(self.chooser.weights)}
        arrays |= {f"bias_{i}": bias for i, bias in enumerate(self.chooser.biases)}
        packed = io.BytesIO()
        np.savez(packed, probes=self.features.encoder.encode(_PROBES), **arrays)
        record = {
            "schema_version": _SCHEMA_VERSION,
            "sha256": hashlib.sha256(packed.getvalue()).hexdigest(),
            "activation": self.chooser.activation,
            "num_layers": len(self.chooser.weights),
            "num_features": self.features.size,
            "judge_id": self.features.judge.judge_id,
            "max_action_chars": self.max_action_chars,
            "tactics": [asdict(tactic) for tactic in self.features.tactics],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"expected a folder in {folder}: {error}; choose another one") from error
        with whole_file(folder / "tactics.npz") as file:
            file.write(packed.getvalue())
        write_text(folder / "tactics.json", json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, name: str, encoder: Encoder, judge: Judge) -> TacticPolicy:
        """Inverse of `save`, with an encoder and a judge like those it was trained with.

        Raises:
            RunError: If the folder holds no tactic policy, or a damaged one.
            ConfigError: If the encoder or the judge is another one.
        """
        try:
            saved = _read(folder)
        except _UNREADABLE as error:
            raise RunError(f"expected a tactic policy in {folder}, it cannot be read: {error!r:.200}") from None
        features = TacticFeatures(saved.tactics, encoder, judge)
        if features.size != saved.chooser.sizes[0] or judge.judge_id != saved.judge_id:
            raise ConfigError(
                f"expected {saved.chooser.sizes[0]} features and judge {saved.judge_id}, as in training, "
                f"got {features.size} and {judge.judge_id}; load it with the encoder and judge it was trained with"
            )
        if not np.allclose(features.encoder.encode(_PROBES), saved.probes, atol=1e-2):
            raise ConfigError(
                "expected the encoder of the training, this one gives other vectors; "
                "load it with the encoder it was trained with"
            )
        return cls(name=name, features=features, chooser=saved.chooser, max_action_chars=saved.max_action_chars)


@dataclass(frozen=True, slots=True)
class _Saved:
    """What stands in a folder."""

    tactics: list[Tactic]
    chooser: Perceptron
    probes: np.ndarray
    judge_id: str
    max_action_chars: int


def _read(folder: Path) -> _Saved:
    record: dict[str, Any] = json.loads((folder / "tactics.json").read_text(encoding="utf-8"))
    if record["schema_version"] != _SCHEMA_VERSION:
        raise ValueError(f"schema version {record['schema_version']!r}, this release reads {_SCHEMA_VERSION}")
    packed = (folder / "tactics.npz").read_bytes()
    if hashlib.sha256(packed).hexdigest() != record["sha256"]:
        raise ValueError("tactics.npz is not the one that tactics.json was written with")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        layers = range(int(record["num_layers"]))
        weights = tuple(np.array(arrays[f"weight_{i}"]) for i in layers)
        biases = tuple(np.array(arrays[f"bias_{i}"]) for i in layers)
        probes = np.array(arrays["probes"], dtype=np.float32)
    tactics = [Tactic(**entry) for entry in record["tactics"]]
    chooser = Perceptron(weights, biases, record["activation"])
    if chooser.sizes != (record["num_features"], len(tactics)):
        raise ValueError(f"a network of {chooser.sizes} for {record['num_features']} features, {len(tactics)} tactics")
    return _Saved(tactics, chooser, probes, str(record["judge_id"]), int(record["max_action_chars"]))


def _drawn(probs: np.ndarray, seed: int) -> int:
    return int(np.random.default_rng(seed).choice(len(probs), p=probs / probs.sum()))
