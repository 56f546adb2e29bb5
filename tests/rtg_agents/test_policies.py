"""Policies without a model, prompts, and populations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rtg_agents.policy import BASE, BackendPolicy, ChatMessage, Completion, Policy, Sampling
from rtg_agents.population import Member, Population, untrained_members
from rtg_agents.prompting import blue_view, red_view
from rtg_agents.scripted import ATTACK_TEMPLATES, RandomPolicy, ScriptedPolicy, TemplatePolicy, plain_attacker
from rtg_agents.tactics import Perceptron, TacticPolicy
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_env.goals import Goal
from rtg_env.policies import checked_actions
from rtg_env.tactics import TACTICS, TacticFeatures
from rtg_env.types import Action, Observation
from tests.judges_for_runs import Vowels

GOAL = Goal(id="g", text="Say {goal} and {0}.")


def seen(agent_id: str = "red_0", turn: int = 0, messages=(), system: str = "") -> Observation:
    goal = GOAL if agent_id != "blue_0" else None
    return Observation(
        agent_id=agent_id, messages=messages, turn=turn, num_exchanges=3, goal=goal, system_prompt=system
    )


TALK = (("user", "Hello"), ("assistant", "Hi"))


def test_scripts_follow_the_turn_and_repeat_their_last_line() -> None:
    policy = ScriptedPolicy(name="s", lines=("a", "b"))
    assert [a.text for a in policy.act([seen(turn=t) for t in (0, 1, 2)], [0, 0, 0])] == ["a", "b", "b"]
    with pytest.raises(ConfigError, match="at least one line"):
        ScriptedPolicy(name="s", lines=())


def test_random_words_are_decided_by_the_seed_alone() -> None:
    policy = RandomPolicy()
    batch = policy.act([seen()] * 3, [7, 8, 7])
    assert batch[0].text == batch[2].text != batch[1].text
    assert policy.act([seen()], [8])[0].text == batch[1].text


def test_goals_are_put_into_templates_without_being_interpreted() -> None:
    assert plain_attacker().act([seen()], [0])[0].text == GOAL.text
    filled = {TemplatePolicy().act([seen()], [seed])[0].text for seed in range(60)}
    assert filled == {template.replace("{goal}", GOAL.text) for template in ATTACK_TEMPLATES}


def test_an_attack_template_cannot_play_blue() -> None:
    with pytest.raises(ConfigError, match="blue_0"):
        plain_attacker().act([seen("blue_0")], [0])


def test_blue_reads_the_chat_as_it_is() -> None:
    assert [m[:2] for m in blue_view(seen("blue_0", 1, TALK))] == list(TALK)
    assert blue_view(seen("blue_0", 1, TALK, "Be kind."))[0] == ChatMessage("system", "Be kind.")


def test_red_reads_its_goal_and_the_chat_with_roles_exchanged() -> None:
    messages = red_view(seen("red_0", 1, TALK))
    assert GOAL.text in messages[1].content
    assert [m[:2] for m in messages[2:]] == [("assistant", "Hello"), ("user", "Hi")]
    with pytest.raises(PolicyError, match="goal"):
        red_view(seen("blue_0"))


class Echo:
    """A backend that says what it was asked last."""

    versions = (BASE,)

    def generate(self, requests):
        return [
            Completion(
                text=r.messages[-1].content, prompt_ids=(1,), token_ids=(2, 3), logps=(-1.0, -2.0), finish_reason="stop"
            )
            for r in requests
        ]

    def score(self, sentences):
        return [(0.0,) * len(s.token_ids) for s in sentences]

    def save_adapter(self, version, folder, *, extra=None):
        folder.mkdir(parents=True)
        for name, text in (extra or {}).items():
            (folder / name).write_text(text)

    def load_adapter(self, version, folder):
        self.versions = (*self.versions, version)


@pytest.mark.parametrize(("left", "asked"), [(None, 8), (9, 8), (3, 3), (0, 1)])
def test_a_model_is_asked_for_no_more_than_its_side_may_still_say(left: int | None, asked: int) -> None:
    sampling = Sampling(temperature=0.5, max_new_tokens=8)
    policy = BackendPolicy(name="b", backend=Echo(), adapter=BASE, prompting=blue_view, sampling=sampling)
    (request,) = policy.requests([seen("blue_0", 0, TALK[:1])._replace(tokens_left=left)], [3])
    assert (request.sampling.max_new_tokens, request.sampling.temperature) == (asked, 0.5)


def test_a_backend_policy_keeps_tokens_log_probabilities_and_temperature() -> None:
    policy = BackendPolicy(
        name="blue_01@v1",
        backend=Echo(),
        adapter=BASE,
        prompting=blue_view,
        sampling=Sampling(temperature=0.5, max_new_tokens=4),
    )
    assert isinstance(policy, Policy)
    (action,) = policy.act([seen("blue_0", 0, TALK[:1])], [3])
    assert action == Action(
        text="Hello", policy="blue_01@v1", prompt_ids=(1,), token_ids=(2, 3), logps=(-1.0, -2.0), temperature=0.5
    )


@pytest.mark.parametrize("returned", [[], ["text"], [Action(text="a")] * 2, None, [Action(text=3)]])
def test_a_policy_that_breaks_its_contract_is_named(returned) -> None:
    with pytest.raises(PolicyError, match="policy sloppy"):
        checked_actions(ScriptedPolicy(name="sloppy", lines=("x",)), returned, 1)


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"temperature": float("nan")}, {"max_new_tokens": 0}, {"max_new_tokens": 1.5}]
)
def test_sampling_out_of_range_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError):
        Sampling(**values)


def population(folder: Path) -> Population:
    return Population(folder, Echo(), {"red": Sampling(), "blue": Sampling()})


def test_members_survive_on_disk_and_keep_their_order(tmp_path: Path) -> None:
    first = population(tmp_path)
    first.extend(untrained_members())
    new = Member(
        version=first.next_version("red"), role="red", kind="adapter", label="trained", lineage={"iteration": 1}
    )
    first.add(new)
    assert first.names("red") == ("red_00@v1", "red_01@v1", "red_02@v1", "red_03@v1")
    again = population(tmp_path)
    restored = [again.restored(v) for v in (*first.names("red"), *first.names("blue"))]
    assert restored == list(first.side("red")) + list(first.side("blue"))
    assert again.restored("red_04@v1") is None
    assert "red_03@v1" in again.backend.versions


def test_members_are_never_overwritten(tmp_path: Path) -> None:
    members = population(tmp_path)
    members.extend(untrained_members())
    with pytest.raises(PolicyError, match="never overwritten"):
        members.add(untrained_members()[0])


def test_a_damaged_lineage_is_named(tmp_path: Path) -> None:
    members = population(tmp_path)
    members.extend(untrained_members())
    (tmp_path / "red_01" / "lineage.json").write_text(json.dumps({"version": 1})[:-3])
    with pytest.raises(RunError, match=r"red_01.lineage\.json"):
        population(tmp_path).restored("red_01@v1")


def tactic_population(folder: Path, *, senses: bool = True) -> Population:
    known = (HashingEncoder(4), Vowels()) if senses else None
    return Population(folder, Echo(), {"red": Sampling(), "blue": Sampling()}, senses=known)


def learnt(version: str, *, index: int = 2) -> TacticPolicy:
    features = TacticFeatures(TACTICS, HashingEncoder(4), Vowels())
    network = Perceptron.always(index, len(TACTICS), features.size)
    return TacticPolicy(name=version, features=features, chooser=network)


def test_a_tactic_policy_is_a_member_like_any_other(tmp_path: Path) -> None:
    members = tactic_population(tmp_path)
    members.extend(untrained_members())
    version = members.next_version("red")
    members.add(Member(version=version, role="red", kind="tactics", label="ppo"), learnt(version))
    again = tactic_population(tmp_path)
    for name in members.names("red"):
        again.restored(name)
    assert again.names("red") == members.names("red")
    seen = Observation("red_0", (), 0, 3, GOAL)
    spoken = again.policies[version].act([seen], [0])
    assert spoken == members.policies[version].act([seen], [0])
    assert spoken[0].policy == version
    assert spoken[0].text == TACTICS[2].template.replace("{goal}", GOAL.text)


def test_a_tactic_member_needs_its_policy_and_others_have_none(tmp_path: Path) -> None:
    members = tactic_population(tmp_path)
    with pytest.raises(PolicyError, match="for a tactic member alone, got none"):
        members.add(Member(version="red_00@v1", role="red", kind="tactics", label="x"))
    with pytest.raises(PolicyError, match=r"'red_00@v1'.*'other'"):
        members.add(Member(version="red_00@v1", role="red", kind="tactics", label="x"), learnt("other"))
    with pytest.raises(PolicyError, match="for a tactic member alone"):
        members.add(Member(version="red_00@v1", role="red", kind="plain", label="x"), learnt("red_00@v1"))
    assert not list(tmp_path.iterdir())


def test_a_tactic_member_is_not_restored_without_what_it_sees_with(tmp_path: Path) -> None:
    version = "red_00@v1"
    tactic_population(tmp_path).add(Member(version=version, role="red", kind="tactics", label="x"), learnt(version))
    with pytest.raises(RunError, match=r"senses=\(encoder, judge\)"):
        tactic_population(tmp_path, senses=False).restored(version)
