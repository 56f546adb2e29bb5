"""`RedTeam/Tokens-v0`: the token level of the game (MDPTG), for learners that choose one token at a time.

    env = gymnasium.make("RedTeam/Tokens-v0", tokenizer=my_tokenizer, opponents=my_blue)

State: the prompt of this turn and the tokens of the sentence so far. Action: the next token. The sentence ends with an
end token, at `max_new_tokens`, or when the side's budget is spent; then it is said, the others answer, and the reward
comes; every other step pays 0 (RTG, arXiv:2310.00322: the Markov decision process of token generation).

Version history: v0, first rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol

import numpy as np
from gymnasium import spaces

from rtg_env.errors import ConfigError, InvalidActionError
from rtg_env.policies import within_limit
from rtg_env.rules import GameConfig
from rtg_env.table import Table
from rtg_env.text import well_formed
from rtg_env.types import Action, FinishReason, Observation
from rtg_env.vector import SeatVectorEnv
from rtg_env.views import SeatEnv, attack_table, defend_table

_MAX_TOKENS: Final = 1_000_000


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        ...

    @property
    def end_ids(self) -> Sequence[int]:
        """Ids that end a sentence; at least one."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """Ids of a text; nothing in a text may become a control token."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        ...


class ByteTokenizer:
    """UTF-8 bytes, and 256 to end a sentence."""

    vocab_size: Final = 257
    end_ids: Final = (256,)

    def encode(self, text: str) -> list[int]:
        """One id per byte; lone surrogates become U+FFFD, as in the game."""
        return list(well_formed(text).encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of bytes; what is no UTF-8 becomes U+FFFD."""
        return bytes(number for number in ids if number < 256).decode("utf-8", "replace")


Prompt = Callable[[Observation], Sequence[int]]
"""What a learner reads before its sentence, as ids."""


def plain_prompt(tokenizer: Tokenizer) -> Prompt:
    """The private part and the dialogue in plain lines; for a model, use its own chat template instead."""
    return partial(_plain_lines, tokenizer)  # no closure: environments are pickled


def _plain_lines(tokenizer: Tokenizer, observation: Observation) -> Sequence[int]:
    private = observation.goal.text if observation.goal else observation.system_prompt
    lines = [private, *(f"{role}: {content}" for role, content in observation.messages), ""]
    return tokenizer.encode("\n".join(lines))


class TokensView:
    """One token at a time.

    The observation holds the last `context` ids of the prompt and the sentence, right-aligned after the padding id
    (`vocab_size`), how many of them belong to the sentence, and the turn.

    Args:
        table: The dialogues.
        tokenizer: Of the learner.
        prompt: What it reads before its sentence.
        max_new_tokens: Longest sentence, the end token included.
        context: Ids in an observation.

    Raises:
        ConfigError: If a number is out of range, or the tokenizer has no id that ends a sentence.
    """

    def __init__(
        self, table: Table, tokenizer: Tokenizer, *, prompt: Prompt | None, max_new_tokens: int, context: int
    ) -> None:
        for name, value in (("max_new_tokens", max_new_tokens), ("context", context)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_TOKENS:
                raise ConfigError(f"{name} must be a whole number in 1..{_MAX_TOKENS}, got {value!r}")
        end_ids = tuple(tokenizer.end_ids)
        if not end_ids or not all(0 <= end < tokenizer.vocab_size for end in end_ids):
            raise ConfigError(
                f"expected a tokenizer with end_ids below its vocab_size ({tokenizer.vocab_size}), got {end_ids}"
            )
        self._table = table
        self._tokenizer = tokenizer
        self._prompt = plain_prompt(tokenizer) if prompt is None else prompt
        self._max_new_tokens = max_new_tokens
        self._context = context
        self._said: list[tuple[int, ...]] = [()] * len(table)
        self._prompts: list[tuple[Observation | None, tuple[int, ...]]] = [(None, ())] * len(table)
        self.action_space = spaces.Discrete(tokenizer.vocab_size)
        self.observation_space = spaces.Dict(
            {
                "tokens": spaces.Box(0, tokenizer.vocab_size, (context,), np.int64),
                "length": spaces.Discrete(max_new_tokens + 1),
                "turn": spaces.Discrete(table.config.num_exchanges + 1),
            }
        )

    def begin(self, slot: int) -> None:
        """No sentence was begun."""
        self._said[slot] = ()

    def keep(self, slot: int) -> tuple[int, ...]:
        """The sentence so far."""
        return self._said[slot]

    def restore(self, slot: int, kept: tuple[int, ...]) -> None:
        """The sentence as it was kept."""
        self._said[slot] = kept

    def say(self, slot: int, action: Any) -> Action | None:
        """The sentence, if this token ends it."""
        if not self.action_space.contains(action):
            raise InvalidActionError(f"action must be a token id below {self.action_space.n}, got {action!r:.80}")
        said = (*self._said[slot], int(action))
        ended = said[-1] in self._tokenizer.end_ids
        left = self._table.observe(slot).tokens_left
        if not ended and len(said) < min(self._max_new_tokens, self._max_new_tokens if left is None else left):
            self._said[slot] = said
            return None
        self._said[slot] = ()
        reason: FinishReason = "stop" if ended else "length"
        text = self._tokenizer.decode(said[:-1] if ended else said)
        action = Action(text=text, prompt_ids=self._read(slot), token_ids=said, finish_reason=reason)
        return within_limit(action, self._table.config.max_action_chars)

    def observe(self, slots: Sequence[int]) -> list[dict[str, Any]]:
        """Tokens, length and turn of each slot."""
        return [self._seen(slot) for slot in slots]

    def info(self, slot: int) -> dict[str, Any]:
        """Nothing."""
        del slot
        return {}

    def _seen(self, slot: int) -> dict[str, Any]:
        ids = (*self._read(slot), *self._said[slot])[-self._context :]
        tokens = np.full(self._context, self._tokenizer.vocab_size, dtype=np.int64)
        if ids:
            tokens[-len(ids) :] = ids
        turn = self._table.observe(slot).turn
        return {"tokens": tokens, "length": np.int64(len(self._said[slot])), "turn": np.int64(turn)}

    def _read(self, slot: int) -> tuple[int, ...]:
        """Ids of the prompt, computed once per turn."""
        observation = self._table.observe(slot)
        known, ids = self._prompts[slot]
        if known != observation:
            ids = tuple(int(number) for number in self._prompt(observation))
            if ids and not 0 <= min(ids) <= max(ids) < self._tokenizer.vocab_size:
                raise ConfigError(
                    f"expected a prompt of ids below vocab_size ({self._tokenizer.vocab_size}), "
                    f"got {min(ids)} .. {max(ids)}; count the added tokens in vocab_size"
                )
            self._prompts[slot] = (observation, ids)
        return ids


def tokens(config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any) -> SeatEnv[Any, Any]:
    """`RedTeam/Tokens-v0`.

    Args:
        config: The game; or pass its fields as keywords (`num_exchanges=2`).
        render_mode: None, "human" or "ansi".
        settings: `side` ("red" or "blue": whose tokens the learner chooses; red), `tokenizer` (UTF-8 bytes), `prompt`
            (`Prompt`: what is read before a sentence; plain lines), `max_new_tokens` (32), `context` (256), and those
            of `rtg_env.views.attack` or `defend`.
    """
    return SeatEnv(*_tokens_view(1, config, **settings), render_mode)


def tokens_vector(
    num_envs: int = 1, config: GameConfig | None = None, *, render_mode: str | None = None, **settings: Any
) -> SeatVectorEnv:
    """`RedTeam/Tokens-v0` with many dialogues; settings as for `tokens`."""
    return SeatVectorEnv(*_tokens_view(num_envs, config, **settings), render_mode)


def _tokens_view(
    num_slots: int,
    config: GameConfig | None,
    *,
    side: Literal["red", "blue"] = "red",
    tokenizer: Tokenizer | None = None,
    prompt: Prompt | None = None,
    max_new_tokens: int = 32,
    context: int = 256,
    **settings: Any,
) -> tuple[Table, TokensView]:
    if side not in ("red", "blue"):
        raise ConfigError(f"side must be 'red' or 'blue', got {side!r}")
    table = (attack_table if side == "red" else defend_table)(num_slots, config, **settings)
    known = ByteTokenizer() if tokenizer is None else tokenizer
    return table, TokensView(table, known, prompt=prompt, max_new_tokens=max_new_tokens, context=context)
