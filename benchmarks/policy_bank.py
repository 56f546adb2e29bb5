"""What a population costs: the policy bank beside the bare model, PEFT and the obvious ways to do the same.

    python benchmarks/policy_bank.py --check --out benchmarks/results/policy_bank.json          # a CPU, about 40 minutes
    python benchmarks/policy_bank.py --device cuda --shape 1b,8b --out policy_bank_cuda.json    # a GPU, random weights

SmolLM2-135M on a CPU. Variants take turns within one process; figures are medians over rounds of the ratio within a
round, because absolute times depend on the machine and on what else it does. Sections: `--only decode,train,..`.
The plain ways are in `plain_ways.py`, the large shapes in `random_models.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plain_ways
import torch
from bank_parts import Decoder, fill, shares, versions
from timing import Bar, ConstantJudge, finish, medians, ratio, rounds_of, seconds, write

from rtg_agents import BASE, BackendPolicy, ChatMessage, Request, Sampling, TokenSequence, TorchBackend, resolve_model
from rtg_agents.generation import Job, Reader
from rtg_agents.kv import Views
from rtg_agents.prompting import blue_view, red_view
from rtg_env import Case, Exchange, GameConfig, goals
from rtg_env.goals import Goal
from rtg_env.judges import Judge, OfflineJudge
from rtg_env.rules import Deal
from rtg_solvers import Game, Pairing, play
from rtg_solvers.advantages import leave_one_out
from rtg_solvers.lessons import collect_lessons
from rtg_solvers.optimizer import OptimizerSettings
from rtg_solvers.trainer import Trainer
from rtg_solvers.updates import reinforce

SKEWED = (20, 12, 8, 6, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1)
"""Rows per policy when shares are unequal; 64 in all."""

NUM_POLICIES = 16
ROWS = 64
PROMPT = 32


class Section(NamedTuple):
    """What one part of the benchmark found."""

    figures: dict[str, Any]
    bars: list[Bar]


class Smol:
    """SmolLM2 in a bank, and with PEFT, with the same adapters.

    Args:
        folder: Where PEFT's copies of the adapters go.
    """

    def __init__(self, folder: Path) -> None:
        self.base = resolve_model("smollm2-135m")
        self.backend = TorchBackend.load(self.base, model_id="smollm2-135m")
        fill(self.backend, NUM_POLICIES)
        self._folder = folder
        self._peft: Any = None

    @property
    def peft(self) -> Any:
        """Loaded from the files that the bank writes."""
        if self._peft is None:
            paths = {version: self._folder / f"adapter{index}" for index, version in enumerate(versions(NUM_POLICIES))}
            for version, path in paths.items():
                self.backend.save_adapter(version, path)
            self._peft = plain_ways.with_adapters(self.base, paths)
        return self._peft


def decode(smol: Smol, rounds: int) -> Section:
    """64 rows for 16 policies, decoded; prompts were read before."""
    equal = shares([ROWS // NUM_POLICIES] * NUM_POLICIES)
    skewed = shares(SKEWED)
    tokens = 8
    times = rounds_of(
        {
            "bare base": plain_ways.decoder(plain_ways.load(smol.base), ROWS, PROMPT, tokens),
            "bank, base rows": Decoder(smol.backend, [BASE] * ROWS, tokens, prompt=PROMPT, highest_id=20_000),
            "bank, equal": Decoder(smol.backend, equal, tokens, prompt=PROMPT, highest_id=20_000),
            "bank, skewed": Decoder(smol.backend, skewed, tokens, prompt=PROMPT, highest_id=20_000),
            "peft, equal": plain_ways.decoder(smol.peft, ROWS, PROMPT, tokens, equal),
            "peft, skewed": plain_ways.decoder(smol.peft, ROWS, PROMPT, tokens, skewed),
        },
        rounds,
    )
    bars = [
        Bar("decode, 16 policies x 4 rows, bank : bare base", ratio(times, "bare base", "bank, equal"), 0.9),
        Bar("decode, 16 policies x 4 rows, bank : PEFT adapter_names", ratio(times, "peft, equal", "bank, equal"), 2.2),
        Bar("decode, skewed shares, bank : bare base", ratio(times, "bare base", "bank, skewed"), 0.6),
        Bar("decode, skewed shares, bank : PEFT adapter_names", ratio(times, "peft, skewed", "bank, skewed"), 1.0),
    ]
    against_own = ratio(times, "bank, base rows", "bank, equal")
    return Section({"seconds": medians(times), "tokens": tokens * ROWS, "bank : its own base rows": against_own}, bars)


def train(smol: Smol, rounds: int) -> Section:
    """One forward and backward pass over 16 policies against sixteen of them."""
    backend, rng = smol.backend, np.random.default_rng(0)
    names = versions(NUM_POLICIES)
    figures, bars = {}, []
    for length, bar in ((16, 1.5), (96, 0.95)):
        sequences = {
            name: [
                TokenSequence.of_sentence(name, (int(ids[0]),), [int(token) for token in ids[1:]])
                for ids in rng.integers(3, 20_000, (2, length))
            ]
            for name in names
        }

        def together(chosen: dict[str, list[TokenSequence]] = sequences) -> None:
            rows = [sequence for name in names for sequence in chosen[name]]
            backend.evaluate(rows, trained=names).logps.sum().backward()

        def apart(chosen: dict[str, list[TokenSequence]] = sequences) -> None:
            for name in names:
                backend.evaluate(chosen[name], trained=[name]).logps.sum().backward()

        times = rounds_of({"together": together, "apart": apart}, rounds)
        figures[f"2 x {length}"] = medians(times)
        title = f"forward and backward, 16 policies x 2 rows x {length} tokens, apart : together"
        bars.append(Bar(title, ratio(times, "apart", "together"), bar))
        for name in names:
            for parameter in backend.parameters(name).values():
                parameter.grad = None
    return Section({"seconds": figures}, bars)


def prefill(smol: Smol, rounds: int) -> Section:
    """k = 5 responses to each of 16 attacks: the prompt is read once."""
    backend, rng = smol.backend, np.random.default_rng(0)
    prompts = [tuple(int(token) for token in rng.integers(3, 20_000, 48)) for _ in range(16)]
    jobs = [
        Job(version=BASE, key=BASE, prompt=prompt, temperature=1.0, max_new_tokens=1, seed=k)
        for prompt in prompts
        for k in range(5)
    ]
    reader = Reader(backend.bank, backend.forward, Views(0), max_tokens=4096, pack_tokens=256)

    @torch.no_grad()
    def once() -> None:
        reader.read(jobs, lambda *_: None)

    repeated = plain_ways.prefill(plain_ways.load(smol.base), [job.prompt for job in jobs])
    times = rounds_of({"once": once, "repeated": repeated}, rounds)
    bars = [Bar("prompts of k = 5 responses, repeated rows : bank", ratio(times, "repeated", "once"), 3.0)]
    return Section({"seconds": medians(times)}, bars)


class Dialogues:
    """Batches of dialogues between members of a population on one backend.

    Args:
        backend: Speaks.
        count: Dialogues in a batch.
        judge: Pays.
    """

    def __init__(self, backend: TorchBackend, count: int, judge: Judge) -> None:
        self.backend, self.count, self.judge = backend, count, judge
        red = Sampling(temperature=0.8, max_new_tokens=20)
        blue = Sampling(temperature=0.7, max_new_tokens=28)
        names = versions(8)
        self.reds, self.blues = names[:4], names[4:]
        self.policies: dict[str, Any] = {
            name: BackendPolicy(
                name=name,
                backend=backend,
                adapter=name,
                prompting=red_view if name in self.reds else blue_view,
                sampling=red if name in self.reds else blue,
            )
            for name in names
        }

    def play(self, exchanges: int) -> int:
        """One batch; the sentences that were said, in tokens."""
        game = Game(config=GameConfig(num_exchanges=exchanges), goals=goals.builtin(), judge=self.judge)
        harmful = game.goals.harmful
        pairings = [
            Pairing(
                red=self.reds[index % 4],
                blue=self.blues[index // 4 % 4],
                deal=Deal(goal=harmful[index % len(harmful)]),
                seed=index,
            )
            for index in range(self.count)
        ]
        played = play(game, self.policies, pairings)
        return sum(len(action.token_ids) for item in played for _, action in item.transcript.actions)


def dialogue(smol: Smol, rounds: int) -> Section:
    """Dialogues of 4 red against 4 blue policies, 16 at once; what was read stays read."""
    backend = smol.backend
    game = Dialogues(backend, 16, ConstantJudge())
    views, kept = backend._views, backend._views.max_bytes
    said: dict[str, int] = {}

    def played(exchanges: int, max_bytes: int) -> Callable[[], None]:
        def run() -> None:
            views.max_bytes = max_bytes
            said[f"{exchanges}, {'kept' if max_bytes else 'read again'}"] = game.play(exchanges)
            views.max_bytes = kept

        return run

    times = rounds_of(
        {
            "1, kept": played(1, kept),
            "5, kept": played(5, kept),
            "10, kept": played(10, kept),
            "5, read again": played(5, 0),
        },
        max(1, rounds // 2),
    )
    per_exchange = {name: spent / int(name.split(",")[0]) for name, spent in medians(times).items()}
    bars = [
        Bar("5 exchanges, read again every turn : kept", ratio(times, "5, read again", "5, kept"), 2.0),
        Bar("seconds per exchange, 5 : 1", ratio(times, "5, kept", "1, kept") / 5, 1.15, at_least=False),
        Bar("seconds per exchange, 10 : 1", ratio(times, "10, kept", "1, kept") / 10, 1.15, at_least=False),
    ]
    return Section({"seconds_per_exchange": per_exchange, "tokens_said": said}, bars)


def outside(smol: Smol, rounds: int) -> Section:
    """The share of a batch of dialogues that is not the model: sampling, caches, chat templates, engine, judge A."""
    backend = smol.backend
    game = Dialogues(backend, 64, OfflineJudge())
    inside, whole = [], []
    with Stopwatch(backend.forward) as watch:
        for number in range(rounds // 2 + 2):
            watch.spent = 0.0
            total = seconds(lambda: game.play(2))
            if number:
                inside.append(watch.spent)
                whole.append(total)
    share = statistics.median(1 - a / b for a, b in zip(inside, whole, strict=True))
    return Section(
        {"seconds": {"whole": statistics.median(whole), "forward": statistics.median(inside)}},
        [Bar("whole dialogues, share of time outside the model's forward calls", share, 0.10, at_least=False)],
    )


class Stopwatch:
    """Adds up the time within the model.

    Args:
        forward: Its two methods are timed.
    """

    def __init__(self, forward: Any) -> None:
        self._forward, self.spent = forward, 0.0

    def __enter__(self) -> Stopwatch:
        """Begin."""
        for name in ("hidden", "logits"):
            setattr(self._forward, name, self._timed(getattr(self._forward, name)))
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the methods as they were."""
        for name in ("hidden", "logits"):
            delattr(self._forward, name)

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            result = method(*args)
            self.spent += time.perf_counter() - begin
            return result

        return run


STEP = {
    "exchanges": 2,
    "group": 8,
    "red_tokens": 20,
    "blue_tokens": 28,
    "temperature": 0.8,
    "kl_weight": 0.01,
    "micro_batch": 16,
}


def step(smol: Smol, rounds: int) -> Section:
    """One policy-gradient step of red on 16 dialogues of 2 exchanges: play, judge A, reference, update."""
    judge, backend = OfflineJudge(), TorchBackend.load(smol.base, model_id="smollm2-135m")
    config = GameConfig(num_exchanges=STEP["exchanges"])
    chosen = [goal for goal in goals.builtin().harmful[:2] for _ in range(STEP["group"])]
    by_text = {goal.text: goal for goal in chosen}

    def pay(texts: Sequence[str], dialogues: Sequence[Sequence[tuple[str, str]]]) -> np.ndarray:
        cases = [
            Case(by_text[text], tuple(Exchange(*pair) for pair in pairs[: turn + 1]))
            for text, pairs in zip(texts, dialogues, strict=True)
            for turn in range(len(pairs))
        ]
        harm = np.array([verdict.harm for verdict in judge.judge(cases)]).reshape(len(texts), -1)
        best = np.maximum.accumulate(harm, axis=1)
        return np.diff(best, axis=1, prepend=0.0)

    ours = OurStep(backend, Game(config=config, goals=goals.builtin(), judge=judge), chosen)
    plain = plain_ways.Step(smol.base, [goal.text for goal in chosen], pay, STEP)
    with Stopwatch(backend.forward) as watch:
        times = rounds_of({"bank": ours, "plain": plain}, rounds)
        spent = watch.spent / (rounds + 1)
    parts = {name: round(statistics.median(values), 3) for name, values in ours.parts.items()}
    return Section(
        {"seconds": medians(times), "profile_s": {**parts, "of it in forward calls": round(spent, 3)}},
        [Bar("one policy-gradient step, 16 dialogues x 2 exchanges, plain : bank", ratio(times, "plain", "bank"), 1.3)],
    )


class OurStep:
    """The same step with the bank; remembers how long its parts take."""

    def __init__(self, backend: TorchBackend, game: Game, chosen: Sequence[Goal]) -> None:
        backend.create("red_01@v1", seed=0)
        self._backend, self._game, self._goals = backend, game, chosen
        self._trainer = Trainer(backend, ["red_01@v1"], OptimizerSettings(micro_batch=STEP["micro_batch"]))
        sampling = {
            side: Sampling(temperature=STEP["temperature"], max_new_tokens=STEP[f"{side}_tokens"])
            for side in ("red", "blue")
        }
        self._policies: dict[str, Any] = {
            name: BackendPolicy(name=name, backend=backend, adapter=adapter, prompting=view, sampling=sampling[side])
            for name, adapter, view, side in (
                ("red_01@v1", "red_01@v1", red_view, "red"),
                ("blue", BASE, blue_view, "blue"),
            )
        }
        self._seed = 0
        self.parts: dict[str, list[float]] = {"dialogues": [], "reference": [], "update": []}

    def __call__(self) -> None:
        """Play, score under the reference, update."""
        begin = time.perf_counter()
        pairings = []
        for goal in self._goals:
            self._seed += 1
            pairings.append(Pairing(red="red_01@v1", blue="blue", deal=Deal(goal=goal), seed=self._seed))
        lessons = collect_lessons(play(self._game, self._policies, pairings), "red", "red_01@v1", STEP["group"])
        played = time.perf_counter()
        sequences = [dataclasses.replace(sequence, policy=BASE) for sequence in lessons.sequences]
        reference = lessons.per_sentence(self._backend.score(sequences))
        scored = time.perf_counter()
        reward = lessons.column("reward") - STEP["kl_weight"] * (lessons.column("logp") - reference)
        reinforce(self._trainer, lessons, leave_one_out(reward, [sentence.group for sentence in lessons.sentences]))
        ended = time.perf_counter()
        for name, value in zip(self.parts, (played - begin, scored - played, ended - scored), strict=True):
            self.parts[name].append(value)


def flips(smol: Smol, rounds: int) -> Section:
    """How often another batch changes a sampled id: rounding decides where a number falls next to a boundary."""
    del rounds
    backend = smol.backend
    requests = [
        Request(
            policy=versions(NUM_POLICIES)[index % NUM_POLICIES],
            messages=(ChatMessage("user", goal.text),),
            sampling=Sampling(max_new_tokens=32),
            seed=index,
        )
        for index, goal in enumerate(goals.builtin().harmful[:64])
    ]
    together = backend.generate(requests)
    apart = []
    for begin in range(0, len(requests), 4):
        backend.forget()
        apart += backend.generate(requests[begin : begin + 4])
    compared = flipped = 0
    for one, other in zip(together, apart, strict=True):
        for left, right in zip(one.token_ids, other.token_ids, strict=False):
            compared += 1
            if left != right:
                flipped += 1
                break  # what follows a flip is another sentence
    return Section({"tokens_compared": compared, "flips": flipped}, [])


SECTIONS: dict[str, Callable[[Smol, int], Section]] = {
    "decode": decode,
    "train": train,
    "prefill": prefill,
    "dialogue": dialogue,
    "outside": outside,
    "step": step,
    "flips": flips,
}


def large(shapes: Sequence[str], device: str, rounds: int) -> dict[str, Any]:
    """Random weights of published shapes, against the limits of the machine."""
    import random_models

    cuda = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    found: dict[str, Any] = {"device": torch.cuda.get_device_name() if cuda else device}
    for shape in shapes:
        found[shape] = random_models.measure(shape, device, rounds, lambda work: seconds(work, wait))
        print(f"{shape}: {json.dumps(found[shape])}", flush=True)
    return found


def main() -> None:
    """Print times, then ratios with their bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--out", type=Path, help="write the figures as JSON; other sections in the file stay")
    parser.add_argument("--device", default="cpu", help="cuda measures random weights of --shape there")
    parser.add_argument("--shape", help="shapes for random weights, separated by commas: tiny, 1b, 3b, 8b")
    options = parser.parse_args()
    record: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if options.shape or options.device != "cpu":
        record["sections"] = large((options.shape or "1b,8b").split(","), options.device, options.rounds)
        finish(record, [], out=options.out, check=False)
    bars: list[Bar] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        smol = Smol(Path(scratch))
        for name in options.only.split(","):
            section = SECTIONS[name](smol, options.rounds)
            found[name], bars = {**section.figures, "rounds": options.rounds}, bars + section.bars
            print(f"{name}: {json.dumps(section.figures)}", flush=True)
            if options.out:
                write({**record, "sections": found}, bars, options.out)
    finish({**record, "sections": found}, bars, out=options.out, check=options.check)


if __name__ == "__main__":
    main()
