from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtg_agents import Perceptron, TacticPolicy, plain_attacker
from rtg_env import tactics as tactics_module
from rtg_env.encoding import HashingEncoder
from rtg_env.errors import ConfigError, PolicyError, RunError
from rtg_env.goals import Goal
from rtg_env.rules import Deal, GameConfig
from rtg_env.table import Pool
from rtg_env.tactics import TACTICS, Tactic, TacticFeatures
from rtg_env.types import Observation
from rtg_env.views import defend
from rtg_solvers.rollout import Game, Pairing, play
from tests.doubles import GOALS, HARMFUL, TextJudge
from tests.speakers import REPLIES, TERSE, Talker

ROOT = Path(__file__).resolve().parents[2]
ENCODER = HashingEncoder(6)


def features(**changes: Any) -> TacticFeatures:
    return TacticFeatures(**{"tactics": TACTICS, "encoder": ENCODER, "judge": TextJudge(), **changes})


def network(seed: int = 0, *hidden: int, num_features: int = 24, num_tactics: int = 8, **changes: Any) -> Perceptron:
    rng = np.random.default_rng(seed)
    sizes = (num_features, *hidden, num_tactics)
    pairs = list(zip(sizes[1:], sizes, strict=False))
    return Perceptron(
        tuple(rng.normal(size=pair) for pair in pairs), tuple(rng.normal(size=out) for out, _ in pairs), **changes
    )


def policy(seed: int = 0, *hidden: int, **changes: Any) -> TacticPolicy:
    return TacticPolicy(**{"name": "red_01", "features": features(), "chooser": network(seed, *hidden), **changes})


def observations(count: int = 40, **settings: Any) -> list[Observation]:
    """Red's, at all kinds of moments of random dialogues."""
    env = tactics_module.tactics(goals=GOALS, judge=TextJudge(), opponents=Talker(), num_exchanges=4, **settings)
    rng, found = np.random.default_rng(0), []
    while len(found) < count:
        env.reset(seed=len(found))
        for _ in range(int(rng.integers(4))):
            env.step(int(rng.integers(8)))
        found.append(env._play.table.observe(0))
    return found


# Speaking


@pytest.mark.parametrize("limit", [70, 2000])
@pytest.mark.parametrize("num_red", [1, 2])
def test_a_policy_says_what_the_environment_would_with_the_same_draws(limit: int, num_red: int) -> None:
    """Also where the tactic that was drawn is not legal."""
    wild = network()
    red = policy(max_action_chars=limit, chooser=Perceptron((wild.weights[0] / 4,), (np.zeros(8),)))
    replies = TERSE if limit < 100 else REPLIES
    env = tactics_module.tactics(
        goals=GOALS,
        judge=TextJudge(),
        opponents=Talker(replies=replies),
        encoder=ENCODER,
        num_red=num_red,
        num_exchanges=4,
        max_action_chars=limit,
    )
    found = set()
    for seed in range(15):
        shown, _ = env.reset(seed=seed)
        over, drawn_by = False, 1000 * seed
        while not over:
            drawn_by += 1
            action = red.act([env._play.table.observe(0)], [drawn_by])[0]
            (probs,) = red.chooser(shown[None])
            choice = int(np.random.default_rng(drawn_by).choice(8, p=probs))
            shown, _, terminated, truncated, info = env.step(choice)
            own = [said for agent, said in env.transcript().actions if agent == "red_0"][-1]
            assert (own.text, own.reasoning) == (action.text, action.reasoning)
            found.add((info["illegal"], action.reasoning))
            over = terminated or truncated
    assert (True, "plain") in found
    assert len(found) >= 3


def test_actions_do_not_depend_on_the_batch_or_its_order() -> None:
    red, seen = policy(0, 16), observations()
    seeds = list(range(100, 140))
    together = red.act(seen, seeds)
    assert [red.act([one], [seed])[0] for one, seed in zip(seen, seeds, strict=True)] == together
    order = np.random.default_rng(1).permutation(40)
    shuffled = red.act([seen[i] for i in order], [seeds[i] for i in order])
    assert shuffled == [together[i] for i in order]
    assert {action.policy for action in together} == {"red_01"}


def test_the_seed_alone_draws() -> None:
    red, seen = policy(), observations(1) * 60
    assert red.act(seen, [7] * 60) == red.act(seen[:1], [7]) * 60
    assert len({action.reasoning for action in red.act(seen, range(60))}) > 3


def test_tactics_are_drawn_with_their_probabilities() -> None:
    probs = np.array([0.5, 0.2, 0.3, 0, 0, 0, 0, 0])
    red = policy(chooser=lambda rows: np.tile(probs * 3.0, (len(rows), 1)))  # need not sum to 1
    said = [action.reasoning for action in red.act(observations(1) * 2000, range(2000))]
    shares = [said.count(tactic.name) / 2000 for tactic in TACTICS]
    assert shares == pytest.approx(probs, abs=4 * 0.5 / 2000**0.5)
    assert shares[3:] == [0] * 5


def test_nobody_asked_is_nothing_said() -> None:
    def never(rows: np.ndarray) -> np.ndarray:
        raise AssertionError("nobody was asked")

    assert policy(chooser=never).act([], []) == []


@pytest.mark.parametrize(
    "probs",
    [
        np.ones(8),
        np.ones((1, 7)),
        np.ones((2, 8)),
        np.full((1, 8), np.nan),
        np.full((1, 8), np.inf),
        np.array([[-0.1, *[1.0] * 7]]),
        np.zeros((1, 8)),
    ],
)
def test_what_are_no_probabilities_is_refused(probs: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"expected probabilities \[1, 8\], got"):
        policy(chooser=lambda rows: probs).act(observations(1), [0])


def test_blue_cannot_be_played() -> None:
    blue = Observation("blue_0", (("user", "Hi"),), 0, 3, system_prompt="Be kind.")
    with pytest.raises(ConfigError, match="expected red's observation with a goal, got one of blue_0"):
        policy().act([blue], [0])


def test_another_process_says_the_same() -> None:
    code = (
        "from tests.rtg_agents.test_tactic_policies import observations, policy\n"
        "print([action.text for action in policy(0, 16).act(observations(), range(40))].__repr__().encode())"
    )
    path = os.pathsep.join(str(ROOT / folder) for folder in (".", "agents", "solvers"))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said = [action.text for action in policy(0, 16).act(observations(), range(40))]
    assert done.stdout.strip() == str(repr(said).encode())


# Perceptrons


def test_a_network_worked_out_by_hand() -> None:
    # tanh(0) = 0 and tanh(1) - then logits (0, tanh 1): softmax by hand.
    chooser = Perceptron((np.array([[0.0], [1.0]]), np.eye(2)), (np.zeros(2), np.zeros(2)))
    t = np.exp(np.tanh(1.0))
    assert chooser(np.array([[1.0]])) == pytest.approx(np.array([[1 / (1 + t), t / (1 + t)]]))
    relu = replace(chooser, activation="relu")
    assert relu(np.array([[1.0], [-1.0]])) == pytest.approx(np.array([[1 / (1 + np.e), np.e / (1 + np.e)], [0.5, 0.5]]))


def test_large_numbers_do_not_overflow() -> None:
    probs = Perceptron((np.array([[1e4], [-1e4]]),), (np.zeros(2),))(np.array([[1.0], [-1.0]]))
    assert probs.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_a_constant_network_always_says_the_same() -> None:
    chooser = Perceptron.always(2, 8, 24)
    assert chooser.sizes == (24, 8)
    red = policy(chooser=chooser)
    assert {action.reasoning for action in red.act(observations(20), range(20))} == {TACTICS[2].name}


@pytest.mark.parametrize("index", [-1, 8])
def test_a_constant_network_for_no_tactic_is_refused(index: int) -> None:
    with pytest.raises(ConfigError, match=f"expected a tactic in 0..7, got {index}"):
        Perceptron.always(index, 8, 24)


A, B = np.zeros((4, 3)), np.zeros(4)


@pytest.mark.parametrize(
    ("weights", "biases", "found"),
    [
        ((), (), "layers"),
        ((A,), (), "layers"),
        ((A,), (np.zeros(3),), "layers"),
        ((np.zeros(4),), (B,), "layers"),
        ((A, A), (B, B), r"follow each other, got \[\(4, 3\), \(4, 3\)\]"),
        ((A + np.nan,), (B,), "finite weights"),
        ((A + np.inf,), (B,), "finite weights"),
        ((A,), (B + np.nan,), "finite weights"),
        ((A,), (B + np.inf,), "finite weights"),
        ((A,), (B - np.inf,), "leave a tactic possible"),
        ((A.astype(complex),), (B,), "of floats, got"),
        ((A.astype(object),), (B,), r"of floats, got \['object'\]"),
        ((A,), (B.astype(str),), "of floats"),
    ],
)
def test_layers_that_are_no_network_are_refused(weights: Any, biases: Any, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        Perceptron(weights, biases)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="activation must be one of tanh, relu, got 'gelu'"):
        network(activation="gelu")


def test_a_network_for_other_numbers_or_tactics_is_refused_at_once() -> None:
    for wrong in (network(num_features=23), network(num_tactics=7)):
        with pytest.raises(ConfigError, match="expected a network of 24 features and 8 tactics, got"):
            policy(chooser=wrong)


def test_networks_and_policies_can_be_compared_and_kept_in_sets() -> None:
    one, two = network(), network()
    assert one != two
    assert len({one, two, one}) == 2


# Saving


def loaded(folder: Path, **changes: Any) -> TacticPolicy:
    return TacticPolicy.load(
        folder, **{"name": "red_01", "encoder": HashingEncoder(6), "judge": TextJudge(), **changes}
    )


@pytest.mark.parametrize(
    "chooser", [network(), network(1, 8, 8), network(2, 4, activation="relu"), Perceptron.always(1, 8, 24)]
)
def test_a_policy_that_was_saved_says_the_same(chooser: Perceptron, tmp_path: Path) -> None:
    red = policy(chooser=chooser, max_action_chars=70)
    red.save(tmp_path / "new" / "folder")
    back = loaded(tmp_path / "new" / "folder")
    assert back.max_action_chars == 70
    assert back.features.tactics == TACTICS
    assert back.act(observations(), range(40)) == red.act(observations(), range(40))


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    policy(0).save(tmp_path)
    policy(1).save(tmp_path)
    assert loaded(tmp_path).act(observations(), range(40)) == policy(1).act(observations(), range(40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tactics.json", "tactics.npz"]


def test_equal_policies_are_equal_files(tmp_path: Path) -> None:
    policy(0).save(tmp_path / "a")
    policy(0).save(tmp_path / "b")
    for name in ("tactics.json", "tactics.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_save_that_is_cut_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy(0).save(tmp_path)
    real = os.replace

    def full(source: str, target: Path) -> None:
        if Path(target).name == "tactics.json":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"expected to write .*tactics.json: .*No space left.*free space"):
        policy(1).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tactics.json", "tactics.npz"]
    with pytest.raises(RunError, match=r"tactics.npz is not the one that tactics.json was written with"):
        loaded(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"expected a folder in .*choose another one"):
        policy().save(tmp_path / "file")


def test_only_a_perceptron_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a Perceptron to save, got function"):
        policy(chooser=lambda rows: np.ones((len(rows), 8))).save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        record = json.loads((folder / "tactics.json").read_text())
        changed = change(record)
        (folder / "tactics.json").write_text(json.dumps(record if changed is None else changed))

    return damage


def _text(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _arrays(**changes: Any) -> Callable[[Path], None]:
    """Other arrays under a right digest: somebody else's folder, not a damaged one."""

    def damage(folder: Path) -> None:
        import hashlib

        with np.load(folder / "tactics.npz") as known:
            arrays = {**known, **changes}
        np.savez(folder / "tactics.npz", **arrays)
        digest = hashlib.sha256((folder / "tactics.npz").read_bytes()).hexdigest()
        _json(lambda record: record.update(sha256=digest))(folder)

    return damage


class Boom:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no json": lambda folder: (folder / "tactics.json").unlink(),
    "no npz": lambda folder: (folder / "tactics.npz").unlink(),
    "empty json": _text("tactics.json", b""),
    "cut json": lambda folder: _text("tactics.json", (folder / "tactics.json").read_bytes()[:80])(folder),
    "binary json": _text("tactics.json", b"\xff\xfe\x00"),
    "deep json": _text("tactics.json", b"[" * 100_000),
    "a list": _json(lambda record: [record]),
    "a number": _json(lambda record: 3),
    "another schema": _json(lambda record: record.update(schema_version=2)),
    "empty npz": _text("tactics.npz", b""),
    "no zip": _text("tactics.npz", b"PK\x03\x04 not really"),
    "cut npz": lambda folder: _text("tactics.npz", (folder / "tactics.npz").read_bytes()[:-40])(folder),
    **{
        f"without {key}": _json(lambda record, key=key: record.pop(key) and None)  # type: ignore[misc]  # one key each
        for key in ("schema_version", "sha256", "activation", "num_layers", "num_features", "judge_id", "tactics")
    },
    "endless layers": _json(lambda record: record.update(num_layers=float("inf"))),
    "no layers": _json(lambda record: record.update(num_layers=0)),
    "more layers": _json(lambda record: record.update(num_layers=10**12)),
    "odd activation": _json(lambda record: record.update(activation=["tanh"])),
    "unknown tactic field": _json(lambda record: record["tactics"][0].update(run="rm -rf")),
    "tactic without template": _json(lambda record: record["tactics"][0].pop("template") and None),
    "tactic of numbers": _json(lambda record: record["tactics"][0].update(name=3)),
    "fewer tactics": _json(lambda record: record["tactics"].pop() and None),
    "weights of objects": _arrays(weight_0=np.array([[Boom()]], dtype=object)),
    "weights of text": _arrays(weight_0=np.full((8, 24), "x")),
    "weights of another shape": _arrays(weight_0=np.zeros((8, 23))),
    "NaN": _arrays(weight_0=np.full((8, 24), np.nan)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_folder_is_refused(
    damage: Callable[[Path], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=r"expected a tactic policy in .*, it cannot be read:"):
        loaded(tmp_path)
    assert capsys.readouterr().out == ""


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    policy().save(tmp_path)
    whole = (tmp_path / "tactics.npz").read_bytes()
    for index in range(0, len(whole), 97):
        (tmp_path / "tactics.npz").write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        with pytest.raises(RunError):
            loaded(tmp_path)


class Negative(HashingEncoder):
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return -super().encode(texts)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"encoder": HashingEncoder(7)},
            "expected 24 features and judge text-a@1, as in training, got 26 and text-a@1",
        ),
        ({"judge": TextJudge("b")}, "judge text-a@1, as in training, got 24 and text-b@1"),
        ({"encoder": Negative(6)}, "expected the encoder of the training, this one gives other vectors"),
    ],
)
def test_another_judge_or_encoder_is_refused(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    policy().save(tmp_path)
    with pytest.raises(ConfigError, match=found):
        loaded(tmp_path, **changes)


# Among other policies


def test_it_plays_in_a_payoff_matrix_beside_others() -> None:
    config = GameConfig(num_red=2, num_exchanges=4, max_action_chars=500)
    game = Game(config=config, goals=GOALS, judge=TextJudge())
    reds = {"red_01": policy(max_action_chars=500), "plain": plain_attacker()}
    blues = {"blue_00": Talker("blue_00"), "blue_01": Talker("blue_01", TERSE)}
    pairings = [
        Pairing(red=red, blue=blue, deal=Deal(HARMFUL, red_order=(1, 0)), seed=seed)
        for red in reds
        for blue in blues
        for seed in range(4)
    ]
    played = play(game, {**reds, **blues}, pairings)
    assert not any(item.transcript.unscored for item in played)
    mine = [action for item in played for agent, action in item.transcript.actions if action.policy == "red_01"]
    assert len(mine) == 2 * 4 * 4
    assert {action.reasoning for action in mine} > {"plain"}
    again = play(game, {**reds, **blues}, pairings[:5])
    assert [item.transcript for item in again] == [item.transcript for item in played[:5]]


def test_a_sentence_beyond_the_games_limit_is_never_said_silently() -> None:
    game = Game(config=GameConfig(max_action_chars=10), goals=GOALS, judge=TextJudge())
    pairing = Pairing(red="red_01", blue="b", deal=Deal(HARMFUL), seed=0)
    with pytest.raises((PolicyError, ValueError), match="at most 10 characters"):
        play(game, {"red_01": policy(), "b": Talker(replies=("No.",))}, [pairing])
    played = play(game, {"red_01": policy(max_action_chars=10), "b": Talker(replies=("No.",))}, [pairing])
    assert {exchange.red for exchange in played[0].transcript.exchanges} <= {HARMFUL.text[:10], "Please go "}


def test_it_is_an_opponent_for_a_learner_in_blues_seat() -> None:
    pool = Pool([policy(), plain_attacker()], [0.5, 0.5])
    env = defend(goals=GOALS, judge=TextJudge(), opponents=pool, benign_prob=0.0, num_exchanges=2)
    found = set()
    for seed in range(12):
        env.reset(seed=seed)
        for _ in range(2):
            env.step("No.")
        found |= {action.policy for agent, action in env.transcript().actions if agent == "red_0"}
    assert found == {"red_01", "plain"}


def test_braces_in_a_goal_stay_as_they_are() -> None:
    goal = Goal(id="x", text="{reply} {goal} {0}")
    observation = Observation("red_0", (("user", "a"), ("assistant", "{goal}")), 1, 3, goal=goal)
    again = Tactic(name="again", template='"{reply}" {goal}')
    red = policy(features=features(tactics=(again,)), chooser=Perceptron.always(0, 1, 17))
    assert red.act([observation], [0])[0].text == '"{goal}" {reply} {goal} {0}'
