"""The dialogue game in miniature, as an OpenSpiel game: small enough to be solved exactly.

Chance draws a goal, which red alone sees. On a harmful one red chooses a tactic per exchange, blue a style of reply, and
chance whether the reply does harm, with a probability that depends on all three. On the benign one nature says what red
would say with its first tactic, so that blue cannot tell them apart at once; there a reply is worth what its style helps.
As in the real game,

    u_red = max over exchanges of  harm (a harmful goal)  or  c * (1 - helpful) (the benign one),   u_blue = -u_red.

Everything that is said is public: tactic, style, and whether it did harm.

    game = tabular.load(tabular.TableSettings(num_exchanges=2))
    value = tabular.exact_value(game)

Written for OpenSpiel's ways with games in Python: a game that was copied or unpickled has lost its attributes, so
everything is derived from its parameters, and no state holds a game.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from rtg_env.errors import ConfigError, MissingExtraError
from rtg_solvers.empirical import highs

try:
    import pyspiel
except ImportError as error:
    raise MissingExtraError(error.name or "pyspiel", "solve") from error

RED: Final = 0
BLUE: Final = 1
_NAME: Final = "tiny_redteam"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """Size and chances of a game."""

    num_exchanges: int = 2
    """T, at least 1."""

    num_goals: int = 2
    """Harmful goals, at least 1."""

    num_tactics: int = 2
    """Of red, at least 1; the first is what a benign user says, too."""

    num_styles: int = 3
    """Of blue's replies, at least 2: the first refuses (never harmful, no help), each of the others is on its guard
    against one tactic; they help more and more."""

    benign_prob: float = 0.5
    """Chance of the benign goal, in [0, 1)."""

    helpfulness_weight: float = 1.0
    """c; 0 leaves the game to those who refuse everything."""

    seed: int = 0
    """Of the chances of harm."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no game."""
        lows = {"num_exchanges": 1, "num_goals": 1, "num_tactics": 1, "num_styles": 2, "seed": 0}
        for name, low in lows.items():
            if getattr(self, name) < low:
                raise ConfigError(f"expected {name} >= {low}, got {getattr(self, name)!r}")
        if not 0.0 <= self.benign_prob < 1.0 or not self.helpfulness_weight >= 0.0:
            raise ConfigError(
                f"expected benign_prob in [0, 1) and helpfulness_weight >= 0, got {self.benign_prob!r} and "
                f"{self.helpfulness_weight!r}"
            )


class Chances(NamedTuple):
    """What the numbers of a game follow from."""

    harm_GKL: np.ndarray
    """Probability that a reply of a style does harm, by goal and tactic."""

    helpful_L: np.ndarray
    """What a style helps, on the benign goal."""

    goals: np.ndarray
    """[1 + G] probability of the benign goal, then of the harmful ones."""


@lru_cache(maxsize=64)
def chances(settings: TableSettings) -> Chances:
    """The numbers of a game; drawn from its seed."""
    rng = np.random.default_rng(settings.seed)
    shape = (settings.num_goals, settings.num_tactics, settings.num_styles)
    harm = 0.5 + 0.4 * rng.random(shape)
    for style in range(1, settings.num_styles):
        harm[:, (style - 1) % settings.num_tactics, style] *= 0.2
    harm[:, :, 0] = 0.0
    helpful = np.r_[0.0, np.linspace(0.7, 1.0, settings.num_styles - 1)]
    harm.setflags(write=False)
    rest = (1.0 - settings.benign_prob) / settings.num_goals
    return Chances(harm, helpful, np.array([settings.benign_prob] + [rest] * settings.num_goals))


class Said(NamedTuple):
    """One exchange."""

    tactic: int
    style: int
    harmful: bool


class Dialogue(NamedTuple):
    """Where a dialogue stands: what chance drew, what was said, what is being said."""

    goal: int = -1
    """-1 before it is drawn; 0 is the benign one."""

    exchanges: tuple[Said, ...] = ()
    tactic: int = -1
    style: int = -1

    def __deepcopy__(self, memo: object) -> Dialogue:
        return self  # it cannot change, and OpenSpiel copies a state for every child of a node

    def utility(self, settings: TableSettings) -> float:
        """u_red of what was said so far."""
        if self.goal == 0:
            helpful = chances(settings).helpful_L
            pays = [settings.helpfulness_weight * (1.0 - helpful[said.style]) for said in self.exchanges]
        else:
            pays = [float(said.harmful) for said in self.exchanges]
        return float(max(pays, default=0.0))


class State(pyspiel.State):  # type: ignore[misc]  # untyped base
    """A node of the game."""

    def __init__(self, game: Any) -> None:
        super().__init__(game)
        self.dialogue = Dialogue()

    def current_player(self) -> int:
        """Whose turn it is."""
        d, settings = self.dialogue, settings_of(self.get_game())
        if len(d.exchanges) == settings.num_exchanges:
            return int(pyspiel.PlayerId.TERMINAL)
        if d.goal < 0 or d.style >= 0:
            return int(pyspiel.PlayerId.CHANCE)
        return BLUE if d.tactic >= 0 else RED

    def _legal_actions(self, player: int) -> list[int]:
        settings = settings_of(self.get_game())
        return list(range(settings.num_tactics if player == RED else settings.num_styles))

    def chance_outcomes(self) -> list[tuple[int, float]]:
        """Goals, or whether a reply does harm."""
        d, numbers = self.dialogue, chances(settings_of(self.get_game()))
        if d.goal < 0:
            return [(goal, float(prob)) for goal, prob in enumerate(numbers.goals) if prob > 0]
        if d.goal == 0:
            return [(0, 1.0)]
        harm = float(numbers.harm_GKL[d.goal - 1, d.tactic, d.style])
        return [(outcome, prob) for outcome, prob in ((0, 1.0 - harm), (1, harm)) if prob > 0]

    def _apply_action(self, action: int) -> None:
        d, settings = self.dialogue, settings_of(self.get_game())
        if d.goal < 0:
            d = d._replace(goal=action)
        elif d.tactic < 0:
            d = d._replace(tactic=action)
        elif d.style < 0:
            d = d._replace(style=action)
        else:
            d = Dialogue(d.goal, (*d.exchanges, Said(d.tactic, d.style, bool(action))))
        if d.goal == 0 and d.tactic < 0 and len(d.exchanges) < settings.num_exchanges:
            d = d._replace(tactic=0)  # nature speaks
        self.dialogue = d

    def _action_to_string(self, player: int, action: int) -> str:
        if player == pyspiel.PlayerId.CHANCE:
            return f"goal {action}" if self.dialogue.goal < 0 else ("harm" if action else "no harm")
        return f"{'tactic' if player == RED else 'style'} {action}"

    def is_terminal(self) -> bool:
        """Whether all exchanges were made."""
        return len(self.dialogue.exchanges) == settings_of(self.get_game()).num_exchanges

    def returns(self) -> list[float]:
        """u_red and u_blue."""
        pay = self.dialogue.utility(settings_of(self.get_game())) if self.is_terminal() else 0.0
        return [pay, -pay]

    def __str__(self) -> str:
        return f"goal {self.dialogue.goal} {spoken(self.dialogue)}"


def spoken(dialogue: Dialogue) -> str:
    """What both sides have heard."""
    lines = [f"{said.tactic}:{said.style}{'!' if said.harmful else '.'}" for said in dialogue.exchanges]
    return " ".join([*lines, f"{dialogue.tactic}:"] if dialogue.tactic >= 0 else lines)


class Observer:
    """What a player knows: red also its goal. Both remember everything."""

    def __init__(self, params: Mapping[str, Any] | None) -> None:
        if params:
            raise ValueError(f"expected no parameters for the observer, got {dict(params)}")
        self.tensor = np.zeros(0, np.float32)
        self.dict: dict[str, np.ndarray] = {}

    def set_from(self, state: State, player: int) -> None:
        """There is no tensor."""

    def string_from(self, state: State, player: int) -> str:
        """Information state of a player."""
        private = f"goal {state.dialogue.goal} " if player == RED else ""
        return f"{'red' if player == RED else 'blue'} {private}{spoken(state.dialogue)}"


class Game(pyspiel.Game):  # type: ignore[misc]  # untyped base
    """The game that OpenSpiel loads as `tiny_redteam(..)`."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        values = {**asdict(TableSettings()), **(params or {})}
        settings = TableSettings(**values)
        highest = max(1.0, settings.helpfulness_weight)
        info = pyspiel.GameInfo(
            num_distinct_actions=max(settings.num_tactics, settings.num_styles),
            max_chance_outcomes=max(2, settings.num_goals + 1),
            num_players=2,
            min_utility=-highest,
            max_utility=highest,
            utility_sum=0.0,
            max_game_length=2 * settings.num_exchanges,
        )
        super().__init__(_TYPE, info, values)

    def new_initial_state(self) -> State:
        """Before chance has drawn a goal."""
        return State(self)

    def make_py_observer(self, iig_obs_type: Any = None, params: Mapping[str, Any] | None = None) -> Observer:
        """What players know."""
        del iig_obs_type
        return Observer(params)


_TYPE: Final = pyspiel.GameType(
    short_name=_NAME,
    long_name="Red teaming in miniature",
    dynamics=pyspiel.GameType.Dynamics.SEQUENTIAL,
    chance_mode=pyspiel.GameType.ChanceMode.EXPLICIT_STOCHASTIC,
    information=pyspiel.GameType.Information.IMPERFECT_INFORMATION,
    utility=pyspiel.GameType.Utility.ZERO_SUM,
    reward_model=pyspiel.GameType.RewardModel.TERMINAL,
    max_num_players=2,
    min_num_players=2,
    provides_information_state_string=True,
    provides_information_state_tensor=False,
    provides_observation_string=False,
    provides_observation_tensor=False,
    parameter_specification=asdict(TableSettings()),
)


def settings_of(game: Any) -> TableSettings:
    """The settings of a game, wherever it was copied to."""
    return _settings(tuple(sorted(game.get_parameters().items())))


@lru_cache(maxsize=64)
def _settings(parameters: tuple[tuple[str, Any], ...]) -> TableSettings:
    return TableSettings(**{**asdict(TableSettings()), **dict(parameters)})


def load(settings: TableSettings | None = None) -> Any:
    """The game as OpenSpiel knows it."""
    return pyspiel.load_game(_NAME, asdict(settings or TableSettings()))


def exact_value(game: Any) -> float:
    """What red wins at equilibrium: OpenSpiel's sequence-form linear program."""
    from open_spiel.python.algorithms import lp_solver, sequence_form_lp

    with highs(lp_solver):
        return float(sequence_form_lp.solve_zero_sum_game(game, solver="HIGHS")[0])


if _NAME not in pyspiel.registered_names():
    pyspiel.register_game(_TYPE, Game)
