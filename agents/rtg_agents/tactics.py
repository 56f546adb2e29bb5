"""Policies that choose among prompt tactics: what `RedTeam/Tactics-v0` is for, once it is learnt.

A `TacticPolicy` sees what every red policy sees, turns it into the numbers of that environment, and draws a tactic from
the probabilities that a chooser gives. It is saved as numbers and JSON: nothing that can run code when it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

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


@dataclass(frozen=True, slots=True)
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
    """Red that chooses among tactics."""

    name: str
    """Version name."""

    features: TacticFeatures
    """Its tactics, and what it sees."""

    chooser: Chooser
    """How it chooses."""

    max_action_chars: int = 2000
    """The game's limit: tactics that exceed it are not legal."""

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
        arrays = {f"weight_{i}": weight for i, weight in enumerate(self.chooser.weights)}
        arrays |= {f"bias_{i}": bias for i, bias in enumerate(self.chooser.biases)}
        record = {
            "schema_version": _SCHEMA_VERSION,
            "activation": self.chooser.activation,
            "num_layers": len(self.chooser.weights),
            "num_features": self.features.size,
            "judge_id": self.features.judge.judge_id,
            "tactics": [asdict(tactic) for tactic in self.features.tactics],
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"expected a folder in {folder}: {error}; choose another one") from error
        with whole_file(folder / "tactics.npz") as file:
            np.savez(file, allow_pickle=False, **arrays)
        write_text(folder / "tactics.json", json.dumps(record, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, name: str, encoder: Encoder, judge: Judge) -> TacticPolicy:
        """Inverse of `save`, with an encoder and a judge like those it was trained with.

        Raises:
            RunError: If the folder holds no tactic policy, or a damaged one.
            ConfigError: If the encoder's vectors have another length, or the judge is another one.
        """
        try:
            record = json.loads((folder / "tactics.json").read_text(encoding="utf-8"))
            tactics = [Tactic(**entry) for entry in record["tactics"]]
            with np.load(folder / "tactics.npz", allow_pickle=False) as arrays:
                layers = range(int(record["num_layers"]))
                weights = tuple(np.array(arrays[f"weight_{i}"]) for i in layers)
                biases = tuple(np.array(arrays[f"bias_{i}"]) for i in layers)
            chooser = Perceptron(weights, biases, record["activation"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"expected a tactic policy in {folder}, it cannot be read: {error!r:.200}") from None
        features = TacticFeatures(tactics, encoder, judge)
        if features.size != record["num_features"] or judge.judge_id != record["judge_id"]:
            raise ConfigError(
                f"expected {record['num_features']} features and judge {record['judge_id']}, as in training, "
                f"got {features.size} and {judge.judge_id}; load it with the encoder and judge it was trained with"
            )
        return cls(name=name, features=features, chooser=chooser)


def _drawn(probs: np.ndarray, seed: int) -> int:
    return int(np.random.default_rng(seed).choice(len(probs), p=probs / probs.sum()))
