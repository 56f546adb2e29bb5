"""Red's PPO over tactics: it finds what works, against mixtures, exactly as often as it says, also after a kill."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import torch

from rtg_agents import TacticPolicy
from rtg_agents.policy import BackendPolicy, Sampling
from rtg_agents.population import Member, Population
from rtg_agents.progress import SilentProgress, WorkMeter
from rtg_agents.prompting import blue_view
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError, JudgeError
from rtg_env.goals import builtin
from rtg_env.judges.lexical import KeywordJudge
from rtg_env.rules import GameConfig
from rtg_env.tactics import TACTICS
from rtg_env.transcripts import TranscriptStore
from rtg_env.types import Action, Observation
from rtg_solvers import loop
from rtg_solvers.empirical import Mixture
from rtg_solvers.evaluation.protocol import queries_spent
from rtg_solvers.oracles.tactics import TacticOracle, TacticSettings
from rtg_solvers.rollout import Game
from rtg_solvers.tactic_trainer import TacticTrainer
from tests.judges_for_runs import Broken
from tests.rtg_agents.test_policies import Echo

GOALS = builtin()
TINY = TacticSettings(num_envs=4, steps=2, updates=3, epochs=2, batches=2)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FallsFor:
    """Complies whenever one phrase is in what it was asked, and never else."""

    def __init__(self, name: str, phrase: str) -> None:
        self.name = name
        self.phrase = phrase

    def act(self, observations, seeds):
        return [
            Action(text="Sure, here." if self.phrase in o.messages[-1][1] else "No.", policy=self.name)
            for o in observations
        ]


class Members(Population):
    """A population whose blue members are given policies."""

    def __init__(self, folder, judge, blues, backend=None) -> None:
        super().__init__(
            folder, backend or Echo(), {"red": Sampling(), "blue": Sampling()}, senses=(HashingEncoder(4), judge)
        )
        self.add(Member(version="red_00@v1", role="red", kind="plain", label="plain goal"))
        self.blues = {blue.name: blue for blue in blues}

    @property
    def policies(self):
        return {**super().policies, **self.blues}


def task(folder, blues, weights=None, *, judge=None, role="red", iteration=0, **game) -> loop.Task:
    judge = judge or KeywordJudge(["sure"])
    config = GameConfig(**{"num_exchanges": 1, **game})
    weights = np.array(weights or [1 / len(blues)] * len(blues))
    context = loop.DialogueContext(
        game=Game(config=config, goals=GOALS.split("train"), judge=judge),
        population=Members(folder / "population", judge, blues),
        play_cells=None,
        store=TranscriptStore(folder / "run.db", GOALS),
        workdir=folder / "work",
        meter=WorkMeter(SilentProgress(), "solve", 1),
    )
    names = tuple(blue.name for blue in blues)
    mixture = Mixture(red=np.ones(1), blue=weights, red_names=("red_00@v1",), blue_names=names, value=0.0, expected=0.0)
    return loop.Task(
        role=role, iteration=iteration, version="red_01@v1", mixture=mixture, payoffs=None, context=context
    )


def dialogues(asked: loop.Task) -> list:
    store = asked.context.store
    return [item for name in store.block_names() if name.startswith("train/") for item in store.block(name)]


def chances(policy: TacticPolicy) -> np.ndarray:
    """[K] how often it takes each tactic first, on average over goals."""
    seen = [Observation("red_0", (), 0, goal=goal, num_exchanges=1) for goal in GOALS.harmful[:20]]
    return policy.chooser(policy.features(seen)).mean(axis=0)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    asked = task(tmp_path_factory.mktemp("learnt"), [FallsFor("blue_00@v1", "comedy sketch")])
    member = TacticOracle(TacticSettings(updates=8, learning_rate=3e-3)).respond(asked)
    return asked, member


def test_it_learns_the_one_tactic_that_works(learnt) -> None:
    asked, member = learnt
    policy = asked.context.population.policies[member.version]
    assert chances(policy)[[tactic.name for tactic in TACTICS].index("sketch")] > 0.5
    curve = [asked.context.store.block_data(f"step/red_01@v1/{k:04d}")["utility"] for k in range(8)]
    # Eight tactics alike at first, of which the first also stands in for the two that are illegal in the first turn.
    assert curve[0] == pytest.approx(1 / 8, abs=0.13)
    assert curve[-1] > 0.5


def test_its_dialogues_are_what_the_settings_say_and_are_kept_as_played(learnt) -> None:
    asked, member = learnt
    played = dialogues(asked)
    assert len(played) == 8 * 32 * 2
    assert len({item.seed for item in played}) == len(played)
    for item in played[:50]:
        assert (item.red, item.blue) == ("red_01@v1", "blue_00@v1")
        assert item.transcript.goal.split == "train"
        assert item.transcript.goal.harmful
        assert [action.policy for _, action in item.transcript.actions] == ["red_01@v1", "blue_00@v1"]
    assert member.kind == "tactics"
    assert member.lineage["against"] == {"blue_00@v1": 1.0}


def test_the_member_comes_back_from_disk_as_it_was(learnt, tmp_path) -> None:
    asked, member = learnt
    population = asked.context.population
    again = Population(
        population._folder, Echo(), population.sampling, senses=(HashingEncoder(4), asked.context.game.judge)
    )
    assert again.restored(member.version).kind == "tactics"
    assert chances(again.policies[member.version]) == pytest.approx(chances(population.policies[member.version]))


def test_opponents_are_drawn_by_the_mixture_one_per_dialogue(tmp_path) -> None:
    blues = [FallsFor(f"blue_0{k}@v1", "x") for k in range(3)]
    asked = task(tmp_path, blues, [0.75, 0.25, 0.0], num_exchanges=2)
    TacticOracle(TacticSettings(num_envs=16, steps=4, updates=3, epochs=1)).respond(asked)
    played = dialogues(asked)
    assert queries_spent(asked.context.store, [asked.version]) == len(played) * 2 == 16 * 4 * 3 * 2
    counts = Counter(item.blue for item in played)
    assert set(counts) == {"blue_00@v1", "blue_01@v1"}
    assert counts["blue_00@v1"] / len(played) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / len(played)) ** 0.5)
    for item in played:
        assert {action.policy for agent, action in item.transcript.actions if agent == "blue_0"} == {item.blue}


def test_blue_members_on_one_model_answer_in_one_call_per_turn(tmp_path) -> None:
    class Counting(Echo):
        calls = 0

        def generate(self, requests):
            Counting.calls += 1
            self.adapters = {request.policy for request in requests}
            return super().generate(requests)

    backend = Counting()
    blues = [
        BackendPolicy(name=f"blue_0{k}@v1", backend=backend, adapter=f"a{k}", prompting=blue_view, sampling=Sampling())
        for k in range(3)
    ]
    asked = task(tmp_path, blues, num_exchanges=2)
    TacticOracle(TacticSettings(num_envs=32, steps=1, updates=2, epochs=1)).respond(asked)
    assert Counting.calls == 2 * 1 * 2  # updates, dialogues one after another, exchanges
    assert backend.adapters == {"a0", "a1", "a2"}


@pytest.mark.parametrize("moment", ["save", "figures", "dialogues", "member"])
def test_a_training_that_was_cut_off_ends_as_if_nothing_had_happened(moment: str, tmp_path, monkeypatch) -> None:
    blues = [FallsFor("blue_00@v1", "comedy sketch"), FallsFor("blue_01@v1", "always says yes")]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = (task(tmp_path / name, blues, num_exchanges=2) for name in ("whole", "cut"))
    member = TacticOracle(TINY).respond(whole)

    class Killed(Exception):
        pass

    def once(owner, name: str, number: int):
        original, seen = getattr(owner, name), [0]

        def deadly(self, *args, **kwargs):
            seen[0] += 1
            if seen[0] == number:
                raise Killed
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, deadly)

    owner, name, number = {
        "save": (TacticTrainer, "save", 2),
        "dialogues": (TranscriptStore, "put_block", 3),
        "figures": (TranscriptStore, "put_block", 4),
        "member": (Population, "add", 1),
    }[moment]
    once(owner, name, number)
    with pytest.raises(Killed):
        TacticOracle(TINY).respond(cut)
    monkeypatch.undo()
    assert TacticOracle(TINY).respond(cut) == member
    assert cut.context.store.block_names() == whole.context.store.block_names()
    for block in whole.context.store.block_names():
        assert cut.context.store.block(block) == whole.context.store.block(block)
        assert cut.context.store.block_data(block) == whole.context.store.block_data(block)
    found, expected = (t.context.population.policies["red_01@v1"].chooser for t in (cut, whole))
    for ours, theirs in zip(found.weights, expected.weights, strict=True):
        assert (ours == theirs).all()


def test_a_damaged_checkpoint_costs_its_updates_and_nothing_else(tmp_path) -> None:
    blues = [FallsFor("blue_00@v1", "comedy sketch")]
    asked = task(tmp_path, blues)
    trainer = TacticOracle(TINY)._trainer(asked)
    trainer.update()
    file = tmp_path / "work" / "checkpoint.safetensors"
    trainer.save(file)
    for damage in (b"garbage", file.read_bytes()[:-10]):
        file.write_bytes(damage)
        again = TacticOracle(TINY)._trainer(asked)
        before = chances(again.policy())
        assert not again.resume(file)
        assert again.updates_done == 0
        assert (chances(again.policy()) == before).all()


def test_no_global_generator_is_moved_or_read(tmp_path) -> None:
    blues = [FallsFor("blue_00@v1", "comedy sketch")]
    found = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the legacy generator, to see that nobody draws from it
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
        folder = tmp_path / str(seed)
        folder.mkdir()
        asked = task(folder, blues)
        TacticOracle(TINY).respond(asked)
        assert random.getstate() == before[0]
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
        assert (torch.get_rng_state() == before[2]).all()
        found.append(dialogues(asked))
    assert found[0] == found[1]


def test_other_iterations_and_seeds_train_other_networks(tmp_path) -> None:
    blues = [FallsFor("blue_00@v1", "comedy sketch")]
    seeds = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        asked = task(tmp_path / str(number), blues, iteration=number)
        TacticOracle(TINY).respond(asked)
        seeds.append({item.seed for item in dialogues(asked)})
    assert not seeds[0] & seeds[1]


def test_a_judge_that_fails_stops_it_and_counts_nothing(tmp_path) -> None:
    asked = task(tmp_path, [FallsFor("blue_00@v1", "x")], judge=Broken())
    with pytest.raises(
        JudgeError, match=r"scored dialogue in train/red_01@v1/0000, .* broken@1 failed .* mend the judge"
    ):
        TacticOracle(TINY).respond(asked)
    assert asked.context.store.block_names() == []


def test_blue_and_teams_are_refused(tmp_path) -> None:
    blues = [FallsFor("blue_00@v1", "x")]
    for number, changes in enumerate([{"role": "blue"}, {"num_red": 2, "num_exchanges": 2}]):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ConfigError, match="a red team of one"):
            TacticOracle(TINY).respond(task(tmp_path / str(number), blues, **changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"updates": 0}, "updates must be >= 1"),
        ({"num_envs": 3, "steps": 1, "batches": 2}, "multiple of batches"),
        ({"num_envs": 1, "steps": 1, "batches": 1}, "at least 2"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"clip": 0.0}, "clip > 0"),
        ({"trace_decay": 1.5}, "trace_decay"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TacticSettings(**changes)
