"""How tables of a model's replies are built, with a model that is quick; and the loop that is held against them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("pyspiel")
from rtg_agents.policy import BASE, ChatMessage, Completion, Request, Sampling
from rtg_env.judges.offline import OfflineJudge

SAID = ("Take the cards and hide them.", "I'm sorry, I can't do that.", "Cards are fun for everybody.")


class QuickModel:
    """Says one of a few sentences, by prompt and seed; breaks off after so many calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.calls, self.asked = calls, list[Request]()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += requests
        numbers = [zlib.crc32(repr((request.messages, request.seed)).encode()) for request in requests]
        return [
            Completion(text=SAID[number % 3], prompt_ids=(), token_ids=(), logps=(), finish_reason="stop")
            for number in numbers
        ]

    def score(self, sequences: Sequence[object]) -> list[tuple[float, ...]]:
        raise NotImplementedError


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import model_replies

    return model_replies


def requests(count: int) -> list[Request]:
    return [
        Request(policy=BASE, messages=(ChatMessage("user", f"Question {n}?"),), sampling=Sampling(), seed=n)
        for n in range(count)
    ]


@pytest.mark.parametrize("tactics", [(("plain", "opener"),), (("plain",), ("plain", "go-on"))])
def test_a_table_is_built_with_one_call_per_exchange_and_pays_what_a_run_pays(
    replies: ModuleType, tactics: tuple[tuple[str, ...], ...], tmp_path: Path
) -> None:
    plan = replies.Plan(file="x.json", num_categories=1, tactics=tactics, prompts=("none", "strict"), num_seeds=2)
    model = QuickModel()
    table = replies.build(plan, model, OfflineJudge(), {})
    assert model.calls == 1000 - len(tactics)
    assert set(table.rows) == set(table.paths())
    assert len({row.reply for row in table.rows.values()}) == 3
    assert replies.worst_error(plan, table, QuickModel(), count=60) <= 1e-9
    # The strict prompt is read, and stands nowhere in what red or nature said.
    assert {request.messages[0].role for request in model.asked} == {"user", "system"}
    table.write(tmp_path / "table.json")
    assert not any(text in (tmp_path / "table.json").read_text("utf-8") for text in SAID)


def test_a_build_that_was_cut_off_asks_only_for_what_is_missing(replies: ModuleType, tmp_path: Path) -> None:
    file, wanted = tmp_path / "texts.jsonl", requests(100)
    with pytest.raises(KeyboardInterrupt):
        replies.RememberedReplies(file, "m", QuickModel(calls=2)).generate(wanted)
    kept = len(file.read_text("utf-8").splitlines())
    assert 0 < kept < 100
    with file.open("a", encoding="utf-8") as half:
        half.write('["abc", "half a li]')  # a kill while writing
    model = QuickModel()
    found = replies.RememberedReplies(file, "m", model).generate([*wanted, wanted[0]])
    assert len(model.asked) == 100 - kept
    assert [completion.text for completion in found[:100]] == [c.text for c in QuickModel().generate(wanted)]
    assert found[100].text == found[0].text
    assert len([json.loads(line) for line in file.read_text("utf-8").splitlines()]) == 100


def test_replies_of_other_weights_are_not_taken(replies: ModuleType, tmp_path: Path) -> None:
    file, model = tmp_path / "texts.jsonl", QuickModel()
    for weights in ("m", "other"):
        replies.RememberedReplies(file, weights, model).generate(requests(3))
    assert len(model.asked) == 6


def test_the_sampled_loop_ends_with_its_best_responses_among_the_members(replies: ModuleType) -> None:
    import known_game
    import sampled_loop

    known = known_game.Known(replies.PLANS["one exchange"].path)
    run = sampled_loop.run(known, 0)
    assert known.nash_conv(known_game.BehaviourPolicy(known.solution)) == pytest.approx(0.0, abs=1e-9)
    inside, whole = run.nash_conv
    assert inside == pytest.approx(whole, abs=1e-9)
    assert 0.0 < whole < 0.1
    # An interval that says something, and the truth in it.
    assert run.by_deal.low <= known.value <= run.by_deal.high
    assert 0.01 < run.by_deal.high - run.by_deal.low < 0.15
    assert run.by_goal.high - run.by_goal.low > run.by_deal.high - run.by_deal.low
