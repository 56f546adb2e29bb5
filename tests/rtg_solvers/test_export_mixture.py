"""`rtg export RUN --blue | --red`: the mixture, the one adapter that imitates it, and what that costs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rtg_agents.hf import TorchBackend
from rtg_agents.lora import LoraSettings
from rtg_agents.policy import TokenSequence
from rtg_agents.population import Population
from rtg_agents.progress import WorkMeter
from rtg_agents.scripted import ATTACK_TEMPLATES
from rtg_env.errors import ConfigError, ModelError, RTGError, RunError
from rtg_env.files import whole_folder
from rtg_solvers import distil, export_mixture, imitation
from rtg_solvers.cli import run
from rtg_solvers.distil import STUDENT, Distillation, DistilSettings, likelihood, taught
from rtg_solvers.distil_cost import measure_cost, num_dialogues
from rtg_solvers.empirical import Mixture
from rtg_solvers.export_mixture import export_solution
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.rollout import Game, Pairing, play
from rtg_solvers.run import RunDirectory, read_goals
from rtg_solvers.session import read_result, resolve_judge
from rtg_solvers.trainer import Trainer
from tests.rtg_solvers.runs import run_here, tiny_config
from tests.tiny import tiny_model, tiny_tokenizer

QUICK = DistilSettings(
    steps=2,
    dialogues_per_step=4,
    held_back=4,
    cost_dialogues=8,
    optimizer=OptimizerSettings(learning_rate=1e-2),
)
IDS = torch.arange(3, 43).reshape(2, 20)


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose mixtures play every member alike: adapter and base for blue, scripts too for red."""
    path = run_here(tiny_folder, tmp_path_factory.mktemp("runs"), method="fictitious-play", goals="builtin").path
    for member, scale in (("blue_01", 0.3), ("red_03", 0.3)):
        _louder(path / "population" / member / "adapter_model.safetensors", scale)
    return path


def _louder(file: Path, scale: float) -> None:
    """A few steps on a tiny model hardly change it: give the adapter something to say that the base does not."""
    generator = torch.Generator().manual_seed(7)
    tensors = load_file(file)
    save_file({name: scale * torch.randn(t.shape, generator=generator) for name, t in sorted(tensors.items())}, file)


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs" / "run"))


@pytest.fixture(scope="module")
def exported(made: Path, tmp_path_factory: pytest.TempPathFactory):
    """Blue's solution, distilled."""
    before = contents(made)
    written = export_solution(made, "blue", tmp_path_factory.mktemp("home") / "out", distil=QUICK, offline=True)
    assert contents(made) == before
    return written


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in ("run.db-wal", "run.db-shm"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def query(run_dir: Path, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(run_dir / "run.db")) as db, db:
        return db.execute(text, values).fetchall()


def with_result(run_dir: Path, **changes: Any) -> None:
    """Write something else into the result of a run."""
    ((text,),) = query(run_dir, "SELECT data FROM blocks WHERE name = 'result'")
    data = json.dumps({**json.loads(text), **changes})
    query(run_dir, "UPDATE blocks SET data = ? WHERE name = 'result'", data)


def peft_logits(base: Any, folder: Path) -> torch.Tensor:
    model = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def bank_logits(folder: Path) -> torch.Tensor:
    backend = TorchBackend(tiny_model(), tiny_tokenizer(), model_id="tiny", lora=LoraSettings(rank=2, alpha=4.0))
    backend.load_adapter("one@v1", folder)
    with torch.no_grad(), backend.bank.routed(backend.bank.route(["one@v1"] * len(IDS))):
        return backend.bank.model(input_ids=IDS, use_cache=False).logits


# The folder


def test_the_folder_holds_the_mixture_its_adapters_and_the_distilled_one(exported, made: Path) -> None:
    member = {
        f"members/blue_01/{name}" for name in ("adapter_model.safetensors", "adapter_config.json", "lineage.json")
    }
    one = {f"distilled/{name}" for name in ("adapter_model.safetensors", "adapter_config.json", "cost.json")}
    found = contents(exported.path)
    assert set(found) == {"mixture.json", "README.md", *member, *one}
    for name in member:
        assert found[name] == (made / "population" / name.removeprefix("members/")).read_bytes()
    assert {path.name for path in exported.path.parent.iterdir()} == {"out"}  # nothing of the work is left


def test_mixture_json_says_all_that_is_needed_to_play_it(exported, made: Path) -> None:
    data = json.loads((exported.path / "mixture.json").read_text())
    result, config = read_result(made), json.loads((made / "config.json").read_text())
    ((identity,),) = query(made, "SELECT data FROM blocks WHERE name = 'identity'")
    assert [(m["version"], m["weight"], m["kind"], m["folder"]) for m in data["members"]] == [
        ("blue_00@v1", 0.5, "base", ""),
        ("blue_01@v1", 0.5, "adapter", "members/blue_01"),
    ]
    assert data["base_model"] == {"id": config["config"]["model"], "fingerprint": json.loads(identity)["model"]}
    assert (
        data["sampling"]
        == {"temperature": 1.0, "max_new_tokens": 8, "min_new_tokens": 0}
        == config["config"]["blue_sampling"]
    )
    assert (data["value"], data["expected"]) == (result.value, result.expected)
    assert data["system_prompt"] == ""
    assert data["game"]["num_exchanges"] == 1
    assert "per dialogue" not in data["how_to_play"]
    assert "each dialogue draw one member" in data["how_to_play"]


@pytest.mark.parametrize("folder", ["members/blue_01", "distilled"])
def test_peft_says_what_our_bank_says(exported, folder: str) -> None:
    outside = peft_logits(tiny_model(), exported.path / folder)
    torch.testing.assert_close(bank_logits(exported.path / folder), outside, atol=2e-4, rtol=1e-3)
    with torch.no_grad():
        assert (outside - tiny_model()(input_ids=IDS, use_cache=False).logits).abs().max() > 0.1


def test_the_code_in_its_readme_runs(exported, monkeypatch) -> None:
    monkeypatch.chdir(exported.path)
    blocks = re.findall(r"^```python\n(.*?)^```", (exported.path / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    drawn: Counter[str] = Counter()

    def choices(items: list[dict[str, Any]], weights: list[float]) -> list[dict[str, Any]]:
        drawn.update(dict(zip([item["version"] for item in items], weights, strict=True)))
        return items[1:]

    monkeypatch.setattr("random.choices", choices)
    for block in blocks:
        namespace: dict[str, Any] = {}
        exec(compile(block, "README.md", "exec"), namespace)
        with torch.no_grad():
            said = namespace["model"].eval()(input_ids=IDS, use_cache=False).logits
        folder = "members/blue_01" if "mixture" in namespace else "distilled"
        torch.testing.assert_close(said, bank_logits(exported.path / folder), atol=2e-4, rtol=1e-3)
    assert drawn == {"blue_00@v1": 0.5, "blue_01@v1": 0.5}


def test_weights_below_the_threshold_are_left_out_and_the_rest_sums_to_one(run_dir: Path, tmp_path: Path) -> None:
    with_result(run_dir, red_mixture=[0.25, 9e-7, 0.5, 0.2499991])
    written = export_solution(run_dir, "red", tmp_path / "out")
    assert [part.version for part in written.members] == ["red_00@v1", "red_02@v1", "red_03@v1"]
    assert sum(part.weight for part in written.members) == pytest.approx(1.0, abs=1e-15)
    # 0.25 / 0.9999991, and so on.
    assert [part.weight for part in written.members] == pytest.approx([0.250000225, 0.50000045, 0.249999325], abs=1e-9)


def test_scripts_are_named_with_the_way_to_build_them(run_dir: Path) -> None:
    import rtg_agents

    written = export_solution(run_dir, "red")
    assert written.path == run_dir.resolve() / "export-red"
    data = json.loads((written.path / "mixture.json").read_text())
    built = {member["kind"]: member["built_by"] for member in data["members"]}
    assert set(built) == {"base", "plain", "templates", "adapter"}
    for kind in ("plain", "templates"):
        name = re.search(r"rtg_agents\.(\w+)\(\)", built[kind]).group(1)
        assert getattr(rtg_agents, name)().templates == (("{goal}",) if kind == "plain" else ATTACK_TEMPLATES)
    assert {path.name for path in (written.path / "members").iterdir()} == {"red_03"}
    assert data["system_prompt"] == "You rewrite requests."
    assert not (written.path / "distilled").exists()


def test_without_distilling_no_model_is_needed(run_dir: Path, tmp_path: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text())
    config["config"]["model"] = str(tmp_path / "gone")
    (run_dir / "config.json").write_text(json.dumps(config))
    assert run(["export", str(run_dir), "--blue", "--no-distil", "--out", str(tmp_path / "out")]) == 0
    assert set(contents(tmp_path / "out")) >= {"mixture.json", "members/blue_01/adapter_model.safetensors"}
    assert run(["export", str(run_dir), "--blue", "--offline", "--out", str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("weights", "kind"), [([0.0, 1.0], "copied"), ([1.0, 0.0], "none"), ([1e-7, 1.0], "copied")])
def test_a_mixture_of_one_member_is_copied_and_costs_nothing(run_dir: Path, weights: list[float], kind: str) -> None:
    with_result(run_dir, blue_mixture=weights)
    written = export_solution(run_dir, "blue", distil=QUICK)
    told = json.loads((written.path / "distilled" / "cost.json").read_text())
    assert (told["kind"], told["cost"]) == (kind, {"by_construction": 0.0})
    assert (kind == "none") == (not (written.path / "distilled" / "adapter_model.safetensors").exists())
    if kind == "copied":
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            source = (run_dir / "population" / "blue_01" / name).read_bytes()
            assert (written.path / "distilled" / name).read_bytes() == source


# Distilling


@pytest.fixture
def task(made: Path, tiny_folder: Path, tmp_path: Path):
    """A red mixture of base, both scripts and the adapter that can be distilled piece by piece."""
    config = tiny_config(tiny_folder, method="fictitious-play")
    backend = TorchBackend.load(tiny_folder, model_id="tiny", lora=LoraSettings(rank=4, alpha=8.0))
    population = Population(made / "population", backend, config.sampling)
    result, goals = read_result(made), read_goals(made)
    for version in (*result.red, *result.blue):
        population.restored(version)

    def of(role: str, red: dict[str, float], blue: dict[str, float], settings: DistilSettings = QUICK) -> Distillation:
        mixture = Mixture(
            red=np.array(list(red.values())),
            blue=np.array(list(blue.values())),
            red_names=tuple(red),
            blue_names=tuple(blue),
            value=0.0,
            expected=0.0,
        )
        game = Game(config=config.game, goals=goals.split("train"), judge=resolve_judge(config.judge))
        return Distillation(
            role=role,
            game=game,
            mixture=mixture,
            opponents=result.blue if role == "red" else result.red,
            population=population,
            backend=backend,
            work=work,
            settings=settings,
            seed=0,
            meter=WorkMeter(Silent(), "distil", 1),
        )

    class Silent:
        def message(self, text: str) -> None: ...

        def advance(self, task: str, done: float, total: float) -> None: ...

    with RunDirectory(tmp_path, "work", {}, goals) as work:
        yield of


def test_the_student_finds_held_back_sentences_of_the_mixture_likelier_than_its_start(task) -> None:
    settings = DistilSettings(
        steps=15, dialogues_per_step=12, held_back=32, optimizer=OptimizerSettings(learning_rate=2e-2)
    )
    learned = distil.learn(task("blue", {"red_01@v1": 1.0}, {"blue_00@v1": 0.5, "blue_01@v1": 0.5}, settings))
    assert learned.start == "fusion"
    assert learned.after.token_logp > learned.before.token_logp
    # On the same sentences: a student that learned nothing gains exactly 0, one that learned something else loses.
    assert learned.after.kl < learned.before.kl - 0.5
    assert learned.after.kl > -3 * learned.after.kl_se


def test_a_student_learns_what_scripts_say(task) -> None:
    settings = DistilSettings(
        steps=12, dialogues_per_step=8, held_back=8, optimizer=OptimizerSettings(learning_rate=2e-2)
    )
    red = {"red_01@v1": 0.5, "red_02@v1": 0.5}
    learned = distil.learn(task("red", red, {"blue_00@v1": 1.0}, settings))
    assert (learned.start, learned.fusion_kept) == ("base", 1.0)
    assert learned.after.token_logp > learned.before.token_logp + 0.5
    assert math.isnan(learned.after.kl)


def test_a_student_equal_to_the_mixture_has_kl_zero(task) -> None:
    one = task("blue", {"red_01@v1": 1.0}, {"blue_01@v1": 1.0})
    one.backend.bank.copy("blue_01@v1", STUDENT)
    played = one.play_unit("some", one.draw("some", count=6))
    found = likelihood(one, played, taught(one, [item.transcript for item in played]))
    assert found.kl == pytest.approx(0.0, abs=1e-6)


def test_the_mixtures_likelihood_of_a_dialogue_is_the_weighted_sum_of_its_members(task) -> None:
    half = task("blue", {"red_01@v1": 1.0}, {"blue_00@v1": 0.25, "blue_01@v1": 0.75})
    half.backend.bank.copy("blue_01@v1", STUDENT)
    played = half.play_unit("some", half.draw("some", count=5))
    lessons = taught(half, [item.transcript for item in played])
    assert len(lessons.sequences) == 5
    expected = []
    for item in played:
        ((_, action),) = [pair for pair in item.transcript.actions if pair[0] == "blue_0"]
        logp = {}
        for version in ("base", "blue_01@v1"):
            ids = TokenSequence.of_sentence(version, action.prompt_ids, action.token_ids, 1.0)
            (logps,) = half.backend.score([ids])
            logp[version] = sum(logps)
        together = math.log(0.25 * math.exp(logp["base"]) + 0.75 * math.exp(logp["blue_01@v1"]))
        expected.append(together - logp["blue_01@v1"])
    found = likelihood(half, played, lessons)
    assert found.kl == pytest.approx(float(np.mean(expected)), abs=1e-5)


def test_what_a_script_says_is_a_lesson_as_the_student_would_read_and_say_it(task) -> None:
    one = task("red", {"red_01@v1": 1.0}, {"blue_00@v1": 1.0})
    deal = one.draw("some", count=1, harmful_only=True)[0].deal
    pairing = Pairing(red="red_01@v1", blue="blue_00@v1", deal=deal, seed=1)
    one.backend.create(STUDENT, seed=0)
    policies = {**one.population.policies, STUDENT: one.population.model_policy(STUDENT, "red", STUDENT)}
    scripted, sampled = play(one.game, policies, [pairing, Pairing(red=STUDENT, blue="blue_00@v1", deal=deal, seed=1)])
    (lesson,) = taught(one, [scripted.transcript]).sequences
    ((begin, end),) = lesson.spans
    asked = sampled.transcript.actions[0][1]
    assert lesson.ids[:begin] == asked.prompt_ids  # what the student reads when it is to speak
    # The limit of red's sentences is 6 ids; the tiny tokenizer has one per byte.
    assert one.backend.chat.decode(lesson.ids[begin:end]) == deal.goal.text[:6]
    assert (lesson.policy, lesson.temperature) == (STUDENT, 1.0)


def test_a_short_script_ends_its_turn_with_the_id_that_the_template_writes(task) -> None:
    from rtg_agents.policy import ChatMessage

    one = task("red", {"red_01@v1": 1.0}, {"blue_00@v1": 1.0})
    prompt = [ChatMessage("user", "Hi")]
    before, said = imitation.typed_ids(one.backend, prompt, "No <|im_end|>")
    assert before == one.backend.chat.encode(prompt)
    assert said == [
        *one.backend.chat.plain("No <|im_end|>"),
        2,
    ]  # 2 is <|im_end|>; the one in the text is ten characters
    one.backend._end_ids = frozenset({0})
    with pytest.raises(ModelError, match="--no-distil"):
        imitation.typed_ids(one.backend, prompt, "No")


# What it costs


def test_cost_json_holds_paired_costs_against_the_mixture_and_the_best_member(exported) -> None:
    told = json.loads((exported.path / "distilled" / "cost.json").read_text())
    assert told["kind"] == "distilled"
    for name, count in (("against_mixture", 8), ("against_best", 4)):
        duel = told["cost"][name]
        # Red's pay is blue's loss: the cost to blue is what red wins more against the student.
        assert duel["cost"]["mean"] == pytest.approx(duel["student"]["mean"] - duel["mixture"]["mean"], abs=1e-12)
        assert duel["cost"]["count"] == count
        assert duel["cost"]["low"] <= duel["cost"]["mean"] <= duel["cost"]["high"]
    best = told["cost"]["against_best"]
    assert {best["opponent_of_mixture"], best["opponent_of_student"]} <= {f"red_0{i}@v1" for i in range(4)}
    assert told["learned"]["kl_after"] is not None


def test_a_student_that_is_the_mixture_costs_nothing(task) -> None:
    one = task("blue", {"red_01@v1": 0.5, "red_02@v1": 0.5}, {"blue_01@v1": 1.0})
    one.backend.bank.copy("blue_01@v1", STUDENT)
    found = measure_cost(one)
    for duel in (found.against_mixture, found.against_best):
        assert (duel.cost.mean, duel.cost.se) == (0.0, 0.0)
    assert found.best_against_mixture == found.best_against_student
    assert sum(len(one.work.store.block(name)) for name in one.work.store.block_names()) == num_dialogues(8, 4)


@pytest.mark.parametrize("role", ["red", "blue"])
def test_another_student_costs_what_its_side_is_paid_less_against_the_opponent_that_wins_most(task, role: str) -> None:
    one = task(role, {"red_03@v1": 1.0}, {"blue_01@v1": 1.0})
    one.backend.create(STUDENT, seed=0)  # says what the base says
    found = measure_cost(one)
    blocks = {name: one.work.store.block(name) for name in one.work.store.block_names()}
    mean = {name: float(np.mean([item.transcript.utility for item in played])) for name, played in blocks.items()}
    sign = 1.0 if role == "red" else -1.0
    best = {}
    for name in ("mixture", "student"):
        tried = {block.rsplit("/", maxsplit=1)[1]: sign * mean[block] for block in blocks if f"{name}/chosen" in block}
        assert set(tried) == set(one.opponents)
        best[name] = min(tried, key=tried.__getitem__)  # what it wins is what the side loses
    assert best == {"mixture": found.best_against_mixture, "student": found.best_against_student}
    for duel, against in ((found.against_mixture, None), (found.against_best, best)):
        ends = {name: f"estimated/{against[name]}" if against else "mixture" for name in ("mixture", "student")}
        cost = sign * (mean[f"cost/mixture/{ends['mixture']}"] - mean[f"cost/student/{ends['student']}"])
        assert duel.cost.mean == pytest.approx(cost, abs=1e-12)
    assert found.against_mixture.cost.mean != 0.0
    chosen, estimated = (blocks[f"cost/mixture/{half}/{best['mixture']}"] for half in ("chosen", "estimated"))
    assert {item.seed for item in chosen}.isdisjoint(item.seed for item in estimated)


# Safety


def test_an_unfinished_run_is_refused_with_the_remedy(run_dir: Path) -> None:
    query(run_dir, "DELETE FROM blocks WHERE name = 'result'")
    with pytest.raises(RunError, match=r"expected a finished run.*finish it with its `rtg solve` command"):
        export_solution(run_dir, "blue")
    assert not (run_dir / "export-blue").exists()


@pytest.mark.parametrize("part", ["model", "judge"])
def test_another_model_or_judge_of_the_same_name_is_refused(run_dir: Path, part: str) -> None:
    if part == "model":
        query(run_dir, "UPDATE blocks SET data = ? WHERE name = 'identity'", json.dumps({"model": "0" * 16}))
    else:
        config = json.loads((run_dir / "config.json").read_text())
        (run_dir / "config.json").write_text(json.dumps({**config, "judge_id": "vowels@0"}))
    with pytest.raises(RunError, match=f"expected the {part} that the run was made with .*--no-distil"):
        export_solution(run_dir, "blue", distil=QUICK)
    assert not (run_dir / "export-blue").exists()


def test_an_export_that_exists_is_kept_unless_forced_and_nothing_else_is_ever_replaced(run_dir: Path, tmp_path) -> None:
    first = export_solution(run_dir, "blue").path
    (first / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="--force"):
        export_solution(run_dir, "blue")
    assert (first / "mine.txt").exists()
    export_solution(run_dir, "blue", force=True)
    assert not (first / "mine.txt").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "mixture.json").write_text('{"format": "paint"}')
    with pytest.raises(RunError, match="it is something else"):
        export_solution(run_dir, "blue", other, force=True)
    assert (other / "mixture.json").read_text() == '{"format": "paint"}'


@pytest.mark.parametrize("out", ["population/blue_02", "population/a/b", "population", "work", "run.db", ".", ".."])
def test_nothing_is_written_into_the_run_but_an_export(run_dir: Path, out: str) -> None:
    before = contents(run_dir)
    for force in (False, True):
        with pytest.raises(RunError):
            export_solution(run_dir, "blue", run_dir / out, force=force)
    assert contents(run_dir) == before


def test_links_are_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        export_solution(run_dir, "blue", tmp_path / "link", force=True)
    (tmp_path / "linked-run").symlink_to(run_dir)
    with pytest.raises(RunError, match="is a link"):
        export_solution(tmp_path / "linked-run", "blue", tmp_path / "out")
    secret, file = tmp_path / "secret", run_dir / "population" / "blue_01" / "adapter_config.json"
    secret.write_text("secret")
    file.unlink()
    file.symlink_to(secret)
    with pytest.raises(RunError, match="is a link"):
        export_solution(run_dir, "blue", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["../../secret@v1", "blue_01/../../x@v1", "red_01@v1", "blue_07@v1"])
def test_a_result_cannot_name_folders_outside_the_population(run_dir: Path, tmp_path: Path, version: str) -> None:
    with_result(run_dir, blue=["blue_00@v1", version])
    with pytest.raises(RunError, match="expected"):
        export_solution(run_dir, "blue", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_sentence_of_a_model_is_written(exported, made: Path) -> None:
    rows = query(made, "SELECT data FROM dialogues")
    texts = {json.loads(data)["exchanges"][0][1] for (data,) in rows}
    said = [text for text in texts if len(text) > 5]
    assert len(said) > 100
    for name in ("mixture.json", "README.md", "distilled/cost.json"):
        written = (exported.path / name).read_text()
        assert not any(text in written for text in said)


# Kills


def test_a_kill_while_it_is_written_leaves_nothing_half_done(run_dir: Path, monkeypatch) -> None:
    earlier = contents(export_solution(run_dir, "blue").path)
    pid = os.fork()
    if pid == 0:  # the last file is about to be written
        export_mixture.readme = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        export_solution(run_dir, "blue", force=True)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert contents(run_dir / "export-blue") == earlier

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_mixture, "readme", full)
    with pytest.raises(RunError, match="No space left"):
        export_solution(run_dir, "blue", force=True)
    with pytest.raises(RunError, match="No space left"):
        export_solution(run_dir, "red")
    assert contents(run_dir / "export-blue") == earlier
    assert not (run_dir / "export-red").exists()


def test_distilling_goes_on_where_it_was_stopped(exported, run_dir: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "home" / "out"
    save, play_unit = Trainer.save, Distillation.play_unit
    saved: list[int] = []
    taught_on: list[str] = []

    def stop(self: Trainer, folder: Path) -> None:
        save(self, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        export_solution(run_dir, "blue", out, distil=QUICK, offline=True)
    assert not out.exists()
    assert len(list(out.parent.glob("export-blue.work-*"))) == 1
    monkeypatch.setattr(Trainer, "save", lambda self, folder: saved.append(self.steps_done) or save(self, folder))
    monkeypatch.setattr(
        Distillation, "play_unit", lambda self, name, p: taught_on.append(name) or play_unit(self, name, p)
    )
    export_solution(run_dir, "blue", out, distil=QUICK, offline=True)
    assert saved == [2]  # the first step is not repeated
    assert [name for name in taught_on if name.startswith("teacher")] == ["teacher/held-back", "teacher/0001"]
    assert contents(out) == contents(exported.path)  # as if it had never stopped
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError), whole_folder(tmp_path / "one") as scratch:
        (scratch / "half").write_bytes("no bytes")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "one") as scratch:
        (scratch / "a").write_text("a")
    with pytest.raises(RunError, match="expected to write the folder"), whole_folder(tmp_path / "one") as scratch:
        (scratch / "b").touch()
    assert contents(tmp_path) == {"one/a": b"a"}
    with whole_folder(tmp_path / "one", force=True) as scratch:
        (scratch / "b").write_text("b")
    assert contents(tmp_path) == {"one/b": b"b"}


# The command


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--blue", "--red"], "--blue or --red, got both"),
        (["--blue", "--format", "jsonl"], "--format only without --blue or --red"),
        (["--red", "--block", "*"], "--block only without"),
        (["--red", "--no-text"], "--no-text only without"),
        (["--no-distil"], "--no-distil only with --blue or --red"),
        (["--steps", "3"], "--steps only with"),
        (["--offline"], "--offline only with"),
        (["--cache-dir", "x"], "--cache-dir only with"),
        (["--blue", "--steps", "3", "--no-distil"], "--steps or --no-distil, got both"),
        (["--blue", "--steps", "0"], "steps >= 1, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(run_dir: Path, capsys, arguments, expected: str) -> None:
    before = contents(run_dir)
    assert run(["export", str(run_dir), *arguments]) == 1
    told = capsys.readouterr()
    assert (told.out, expected in told.err, "Traceback" in told.err) == ("", True, False)
    assert contents(run_dir) == before


def test_the_command_prints_the_mixture_and_the_cost(run_dir: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(distil.DistilSettings, "__init__", _quick(distil.DistilSettings.__init__))
    assert run(["export", str(run_dir), "--red", "--steps", "1", "--offline"]) == 0
    text = capsys.readouterr().out
    told = json.loads((run_dir / "export-red" / "distilled" / "cost.json").read_text())
    assert told["settings"]["steps"] == 1
    assert told["scripts_imitated_as_text"] == ["red_01@v1", "red_02@v1"]
    assert "  0.2500  red_02@v1  templates" in text
    assert re.search(r"against blue's mixture +[+-]0\.\d{3} \[", text)
    assert "cost to red" in text
    assert str(run_dir / "export-red") in text


def _quick(original: Any) -> Any:
    def init(self: DistilSettings, **given: Any) -> None:
        original(self, **{"dialogues_per_step": 4, "held_back": 4, "cost_dialogues": 4, **given})

    return init


def test_settings_that_cannot_be_are_refused() -> None:
    for bad in (
        {"steps": 0},
        {"held_back": 1},
        {"cost_dialogues": 7},
        {"cost_dialogues": 2},
        {"dialogues_per_step": 0},
    ):
        with pytest.raises(ConfigError, match="expected"):
            DistilSettings(**bad)
    assert issubclass(ConfigError, RTGError)
