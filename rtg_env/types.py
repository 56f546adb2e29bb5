"""Values that cross the seams: who speaks, what was said, what a judge thought of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, NoReturn

from rtg_env.errors import InvalidActionError

if TYPE_CHECKING:
    from rtg_env.goals import Goal

Role = Literal["red", "blue"]
"""A side of the game."""

RED: Final[Role] = "red"
BLUE: Final[Role] = "blue"
MAX_REASONING_CHARS: Final = 20_000
"""Longest private reasoning of one sentence, in code points."""

BLUE_AGENT: Final = "blue_0"
"""The one defender; `red_0 .. red_{n-1}` attack."""


def red_agent(index: int) -> str:
    """Agent id of the red member with this index."""
    return f"red_{index}"


def role_of(agent_id: str) -> Role:
    """Side of an agent id."""
    return BLUE if agent_id == BLUE_AGENT else RED


PublicMessage = tuple[Literal["user", "assistant"], str]
"""One public sentence: the user is red (or nature), the assistant blue."""


class Message(dict[str, str]):
    """One public sentence as `{"role", "content"}`, as chat templates read it: red (or nature) is the user.

    It cannot be changed: it is made once and stands in every observation from then on, of whatever agent.
    `dict(message)` is a copy that can.
    """

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("expected a message to stay as it was said; change a copy of it: dict(message)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[Message], tuple[dict[str, str]]]:
        return Message, (dict(self),)

    def __deepcopy__(self, memo: object) -> Message:
        return self


class Exchange(NamedTuple):
    """One sentence of red (or of nature, on a benign goal) and blue's answer to it."""

    red: str
    blue: str


def as_chat(
    exchanges: Sequence[Exchange], pending: str | None = None, known: tuple[Message, ...] = ()
) -> tuple[Message, ...]:
    """A dialogue as messages, oldest first.

    Args:
        exchanges: What was said and answered.
        pending: The sentence that blue has not answered yet.
        known: The messages of an earlier moment of the same dialogue, which are kept.
    """
    for red, blue in exchanges[len(known) // 2 :]:
        if len(known) % 2 == 0:
            known += (Message(role="user", content=red),)
        known += (Message(role="assistant", content=blue),)
    if pending is not None and len(known) % 2 == 0:
        known += (Message(role="user", content=pending),)
    return known


class PublicMessages(Sequence[PublicMessage]):
    """The sentences of a dialogue as a chat, oldest first: a view, so that seeing a long dialogue costs nothing until it is read.

    Equal to the tuple of its messages.

    Args:
        exchanges: What was said and answered.
        pending: The sentence that blue has not answered yet.
    """

    __slots__ = ("_exchanges", "_pending")

    def __init__(self, exchanges: tuple[Exchange, ...] = (), pending: str | None = None) -> None:
        self._exchanges = exchanges
        self._pending = pending

    def __len__(self) -> int:
        return 2 * len(self._exchanges) + (self._pending is not None)

    def __iter__(self) -> Iterator[PublicMessage]:
        for red, blue in self._exchanges:
            yield "user", red
            yield "assistant", blue
        if self._pending is not None:
            yield "user", self._pending

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PublicMessages | tuple):
            return NotImplemented
        return tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


class Observation(NamedTuple):
    """What one agent sees when it is asked to speak.

    The public part is the same for everybody; `goal` is red's alone, `system_prompt` blue's alone.
    """

    agent_id: str
    """Who is asked to speak."""

    messages: Sequence[PublicMessage]
    """The public dialogue so far, oldest first; the user is red or nature."""

    turn: int
    """Index of the current exchange, from 0."""

    num_exchanges: int
    """Exchanges in a dialogue (T)."""

    goal: Goal | None = None
    """What red wants; None in blue's observation."""

    system_prompt: str = ""
    """Blue's own instructions; empty in red's observation."""

    reasoning: tuple[str, ...] = ()
    """What red thought before its earlier sentences; empty in blue's observation."""

    tokens_left: int | None = None
    """What this side may still say in this dialogue; None without a limit."""

    said: Sequence[Action] = ()
    """What this side has said so far, with its token record: the t-th action belongs to exchange t.

    Nature's sentences are no actions, and a side whose budget is spent takes none. `messages` hold what got through the
    message filters, an action what went into them. The dict observations of PettingZoo and Gymnasium leave it out.
    """

    @property
    def role(self) -> Role:
        """Side of the observing agent."""
        return role_of(self.agent_id)


FinishReason = Literal["stop", "length", "budget", "cut"]
"""Why a sentence ended: its author ended it, the token limit did, or there were no tokens left to begin with.

`cut`: the limit on characters did, after sampling; the ids say more than the text.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What one agent says, and for a model how it came to say it."""

    text: str
    """The sentence."""

    policy: str = ""
    """Version name of the author (`red_03@v2`), empty if unknown."""

    prompt_ids: tuple[int, ...] = ()
    """Token ids that the model read; empty for a policy without tokens."""

    token_ids: tuple[int, ...] = ()
    """Token ids that the model sampled, the end-of-turn id included if it was sampled."""

    logps: tuple[float, ...] = ()
    """Log-probability of each sampled id under the untruncated distribution at the sampling temperature."""

    temperature: float = 1.0
    """Temperature at which the ids were sampled and `logps` are given."""

    finish_reason: FinishReason = "stop"
    """Why the sentence ended."""

    reasoning: str = ""
    """What red thought before it spoke: private, stored, shown to red alone; ignored for blue."""

    def __post_init__(self) -> None:
        """Make plain numbers of whatever array library the author uses, and refuse what a learner could not use.

        Raises:
            InvalidActionError: If the token record does not fit together or holds NaN or infinity, or reasoning is no text.
        """
        if self.reasoning and not (isinstance(self.reasoning, str) and len(self.reasoning) <= MAX_REASONING_CHARS):
            raise InvalidActionError(f"expected reasoning to be text of at most {MAX_REASONING_CHARS} characters")
        if not (len(self.prompt_ids) or len(self.token_ids) or len(self.logps)) and self.temperature == 1.0:
            return
        try:
            object.__setattr__(self, "prompt_ids", tuple(int(number) for number in self.prompt_ids))
            object.__setattr__(self, "token_ids", tuple(int(number) for number in self.token_ids))
            object.__setattr__(self, "logps", tuple(float(number) for number in self.logps))
            object.__setattr__(self, "temperature", float(self.temperature))
        except (TypeError, ValueError) as error:
            raise InvalidActionError(f"expected numbers in the token record of an action: {error}") from None
        if self.logps and len(self.logps) != len(self.token_ids):
            raise InvalidActionError(
                f"expected one log-probability per sampled token, got {len(self.logps)} for {len(self.token_ids)}"
            )
        if not all(map(math.isfinite, (*self.logps, self.temperature))):
            raise InvalidActionError("expected finite log-probabilities and temperature, got NaN or infinity")

    @property
    def num_spoken(self) -> int:
        """Sampled ids, the end of the turn left out; 0 without a token record."""
        return len(self.token_ids) - (self.finish_reason == "stop") if self.token_ids else 0


class Case(NamedTuple):
    """What a judge is shown: one exchange, in its dialogue, against its goal."""

    goal: Goal
    """What red wanted, harmful or benign."""

    exchanges: tuple[Exchange, ...]
    """The dialogue so far; the last one is to be judged."""

    @property
    def exchange(self) -> Exchange:
        """The exchange to be judged."""
        return self.exchanges[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge says about one exchange.

    An invalid verdict carries no numbers that may be used: its dialogue is unscored.
    """

    harm: float
    """Degree to which the reply fulfils this goal harmfully, in [0, 1]."""

    refusal: float
    """Degree to which the reply refuses, in [0, 1]."""

    helpful: float
    """Degree to which the reply answers: 0 for a refusal, an empty, evasive or off-topic one."""

    valid: bool = True
    """False if the judge failed; then the three numbers are meaningless."""

    judge_id: str = ""
    """Name and version of the judge."""

    raw: Mapping[str, float | str] = field(default_factory=dict)
    """Parts the numbers were made of, or the reason of the failure under `error`."""

    @classmethod
    def failed(cls, judge_id: str, error: str) -> Verdict:
        """A verdict that must never be paid."""
        nan = float("nan")
        return cls(harm=nan, refusal=nan, helpful=nan, valid=False, judge_id=judge_id, raw={"error": error[:500]})
