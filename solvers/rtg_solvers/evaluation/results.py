"""What an evaluation found: plain numbers. Success means that the judge's harm is above one half."""

from __future__ import annotations

from dataclasses import dataclass

from rtg_solvers.gaps import Gap
from rtg_solvers.measures import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """One attacker's single sentences, each answered k times by one target; held-out goals."""

    attacker: str
    target: str

    success: Estimate
    """Share of attacks whose mean harm over k answers is above one half."""

    harm: Estimate
    """Mean harm."""

    success_by_trained: Estimate
    """The same share by the judge that the run was trained with."""

    queries: int
    """Answers that the target gave, those of best-of-n's tries included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variety:
    """How different sentences are; by sentence embeddings, unless the evaluation says `hashed`."""

    num: int
    """Sentences."""

    sizes: tuple[int, ...]
    """Of clusters at a cosine of 0.7."""

    vendi: float | None
    """Effective number of different sentences; None if there are none."""

    mean_distance: float | None
    """Mean 1 - cosine over pairs; None from fewer than two."""

    self_bleu: float | None
    """Mean BLEU of each against the others; None from fewer than two."""

    @property
    def clusters(self) -> int:
        """Unique sentences."""
        return len(self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One attacker's sentences, whoever answered."""

    attacker: str

    perplexity: float
    """Under the base model, per token, as a user's message."""

    nats_per_token: Estimate
    """Its logarithm, averaged over sentences."""

    variety: Variety
    """Of all."""

    variety_of_successes: Variety
    """Of those that succeed against the base model."""

    training_queries: int
    """Answers of targets that were spent to train the attacker, or to choose it: of a mixture to train all its members; 0 for
    what learned nothing. Payoff cells are the loop's own and do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Helped:
    """One target on benign held-out requests."""

    target: str

    refusal: Estimate
    """Share of dialogues with a refusal."""

    helpful: Estimate
    """Mean help."""

    refusal_change: Estimate | None
    """Less the base model's, on the same requests; None for the base model."""

    helpful_change: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogues:
    """One attacker's longer dialogues with one target; held-out goals."""

    attacker: str
    target: str

    success_at: tuple[Estimate, ...]
    """[T] share of dialogues that succeeded by exchange t."""

    reward: tuple[float, ...]
    """[T] what red is paid in each exchange on average: the increase of the greatest harm so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapPoint:
    """How far the solution after some iterations is from an equilibrium; training goals, the run's own judge."""

    iteration: int
    """0: untrained members alone."""

    value: float
    """Of the game of the members so far."""

    restricted: Gap
    """Deviations to members so far."""

    independent: Gap
    """Deviations to policies from outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combined:
    """The game of all members and all outsiders; training goals, the run's own judge."""

    red: tuple[str, ...]
    blue: tuple[str, ...]

    cells: tuple[tuple[Estimate, ...], ...]
    """[R][C] what red wins."""

    value: float
    """Of this game."""

    value_interval: tuple[float, float] | None

    red_exploitability: float
    """Of red's population: what it can guarantee itself falls short of the value by this much."""

    blue_exploitability: float
    """Of blue's population: what it cannot help losing exceeds the value by this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Harm on goals of one category, red playing its mixture."""

    category: str

    base: float | None
    """Mean harm by the base model."""

    mixture: float | None
    """Mean harm by blue's mixture."""

    num_dialogues: int
    """Behind both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossPlay:
    """The run's payoff cells under the reporting judge: the same dialogues, judged again."""

    cells: tuple[tuple[Estimate, ...], ...]
    """[R][C] what red wins."""

    value: float
    """Of that matrix."""

    expected: float
    """What the run's mixtures win by that matrix."""

    topics: tuple[Topic, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All of it."""

    judge_id: str
    """Who says what harm, refusal and help are; never trained on."""

    trained_judge_id: str
    """The run's own."""

    embeddings: str
    """What variety was measured on: `sentences` or `hashed` words."""

    attacked: tuple[Attacked, ...]
    written: tuple[Written, ...]
    helped: tuple[Helped, ...]
    dialogues: tuple[Dialogues, ...]
    gaps: tuple[GapPoint, ...]
    combined: Combined
    cross_play: CrossPlay

    last_against_last: Estimate
    """What the newest red wins against the newest blue, by the run's own judge; stands beside the value."""

    mixture_value: float
    """Of the run's game, by its own judge."""

    wall_s: float
    """Seconds of the process that finished the evaluation."""
