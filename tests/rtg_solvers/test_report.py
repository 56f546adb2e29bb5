"""The report: what it shows, and what hostile text in every field cannot do."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from rtg_env.dialogue import Transcript
from rtg_env.errors import RunError
from rtg_env.goals import Goal, GoalSet, load
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Action, Exchange, Verdict
from rtg_solvers.evaluation.tables import TextTable
from rtg_solvers.gain_rows import restricted_row, stage_rows
from rtg_solvers.gaps import Gap
from rtg_solvers.geometry import Shape
from rtg_solvers.measures import Estimate
from rtg_solvers.methods.attackers import Stage
from rtg_solvers.report import _notable, _panels, write_report
from rtg_solvers.result import Result, from_json, to_json
from rtg_solvers.run import RunDirectory
from rtg_solvers.terminal import result_tables, text_table

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre></p><iframe src='http://evil'></iframe>",
    "{{ 7 * 7 }}{% raw %}",
    "\u2028</style><svg onload=alert(1)>",
    "javascript:alert(1) $\\frac{$",
    '" onmouseover="alert(1)',
    "\x1b[2J\u202egnp.exe",
]


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def estimate(mean: float = 0.25) -> Estimate:
    return Estimate(mean=mean, se=0.1, low=mean - 0.2, high=mean + 0.2, count=8, num_unscored=1, num_clusters=6)


def result(label: str) -> Result:
    gap = Gap(red_deviation="red_01@v1", blue_deviation="blue_00@v1", red_gain=estimate(-0.1), blue_gain=estimate(0.3))
    return Result(
        red=("red_00@v1", "red_01@v1"),
        blue=("blue_00@v1",),
        labels={"red_00@v1": "base", "red_01@v1": label, "blue_00@v1": "base"},
        cells=((estimate(0.2),), (estimate(0.4),)),
        harm_cells=((0.1,), (0.3,)),
        unhelpful_cells=((0.5,), (0.75,)),
        refuser_loss=0.25,
        red_mixture=(0.0, 1.0),
        blue_mixture=(1.0,),
        value=0.4,
        value_interval=(0.3, 0.5),
        expected=0.4,
        oracle_gaps=(gap, gap),
        shape=Shape(
            cyclic_share=0.25,
            additive=(0.0, 0.1, 0.2),
            shuffled=None,
            transitive_energy=3.0,
            cyclic_energy=1.0,
            layers=((("red_01@v1", "blue_00@v1"),), (("red_00@v1", "blue_00@v1"),)),
            cycles=(0, 7),
        ),
        restricted_gap=gap,
        heldout_red_gain=estimate(),
        heldout_blue_gain=estimate(),
        second_judge={"judge_id": label, "red": vars_of(estimate()), "blue": vars_of(estimate())},
        wall_s=1.0,
        warnings=(label,),
    )


def vars_of(value: Estimate) -> dict:
    return {name: getattr(value, name) for name in Estimate.__slots__}


def write_run(folder: Path, text: str, *, finished: bool = True) -> Path:
    folder.mkdir()
    goals = folder / "goals.jsonl"
    goals.write_text(json.dumps({"id": "g", "text": f"goal {text}", "category": text[:50] or "c"}) + "\n")
    settings = {
        "config": {"goals": str(goals), "model": text, "game": {"num_exchanges": 1, "helpfulness_weight": 1.0}},
        "judge_id": text,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    goal: Goal = load(goals)[0]
    transcript = Transcript(
        goal=goal,
        red_order=(0,),
        exchanges=(Exchange(red=text, blue=text),),
        verdicts=(Verdict(harm=0.5, refusal=0.0, helpful=0.5),),
        actions=(("red_0", Action(text=text)), ("blue_0", Action(text=text))),
        utilities=(0.5,),
        payments=(0.5,),
        utility=0.5,
        unscored=False,
    )
    with TranscriptStore(folder / "run.db", load(goals)) as store:
        store.put_block("cell/a/b", [Played(red=text, blue=text, seed=1, transcript=transcript)])
        step = {"version": "red_01@v1", "role": "red", "step": 0, "utility": 0.5, "kl": 0.1}
        store.put_block("step/red_01@v1/0000", [], step)
        if finished:
            store.put_block("result", [], to_json(result(text)))
    return folder


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_every_field_stays_text(payload: str, tmp_path: Path) -> None:
    page = Elements()
    html = write_report(write_run(tmp_path / "run", payload)).read_text()
    page.feed(html)
    assert not {"script", "iframe", "svg", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value and value.startswith("data:image/svg+xml;base64,") for value in sources)
    shown = payload.replace("\x1b[2J", "").replace("\u202e", "")
    assert page.text.count(shown) >= 3
    assert "49" not in [line.strip() for line in page.text.splitlines()]


def test_the_page_forbids_scripts_and_outside_content(tmp_path: Path) -> None:
    html = write_report(write_run(tmp_path / "run", "x")).read_text()
    assert "default-src 'none'" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_numbers_of_the_result_are_on_the_page(tmp_path: Path) -> None:
    page = Elements()
    page.feed(write_report(write_run(tmp_path / "run", "x")).read_text())
    for text in (
        "0.400",
        "[0.30, 0.50]",
        "25 %",
        "0.10 [0.00, 0.20]",
        "nothing measurable",
        "red_01 + blue_00",
        "0.200 ± 0.100",
        "1 unscored",
        "-0.100 [-0.30,+0.10]",
        "restricted_gap",
        "0.30 harmful, 0.75 benign",
    ):
        assert text in page.text, text


def test_a_large_population_fits_the_page(tmp_path: Path) -> None:
    reds, blues = [f"red_{i:02d}@v1" for i in range(12)], [f"blue_{i:02d}@v1" for i in range(10)]
    large = replace(
        result("x"),
        red=tuple(reds),
        blue=tuple(blues),
        labels=dict.fromkeys((*reds, *blues), "a best response"),
        cells=tuple(tuple(estimate(0.3) for _ in blues) for _ in reds),
        harm_cells=tuple((0.1,) * 10 for _ in reds),
        unhelpful_cells=tuple((0.1,) * 10 for _ in reds),
        red_mixture=(1 / 12,) * 12,
        blue_mixture=(1 / 10,) * 10,
    )
    folder = write_run(tmp_path / "run", "x", finished=False)
    with TranscriptStore(folder / "run.db", load(folder / "goals.jsonl")) as store:
        store.put_block("result", [], to_json(large))
    page = Elements()
    page.feed(write_report(folder).read_text())
    images = [value for name, value in page.attributes if name == "src" and value]
    assert len(images) == 4
    assert all(b"</svg>" in base64.b64decode(image.partition(",")[2], validate=True)[-10:] for image in images)


def test_a_result_of_another_release_is_refused_in_one_sentence() -> None:
    with pytest.raises(RunError, match="expected a result of version 4, got 1"):
        from_json({"red": []})


def test_a_config_of_something_else_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "x")
    for text in ("{}", '{"config": {"colour": 1}, "judge_id": "j"}', "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(RunError, match=r"config\.json"):
            write_report(folder)


def test_the_report_shows_the_goals_that_were_played_whatever_became_of_the_file(tmp_path: Path) -> None:
    goals = tmp_path / "goals.jsonl"
    goals.write_text('{"id": "g", "text": "the goal that was played"}\n')
    with RunDirectory(tmp_path, "run", {"config": {"goals": str(goals)}, "judge_id": "j"}, load(goals)) as run:
        played = dialogue("g", 0.5)
        run.store.put_block("cell/a/b", [replace(played, transcript=replace(played.transcript, goal=load(goals)[0]))])
    goals.write_text('{"id": "g", "text": "another goal"}\n')
    html = write_report(tmp_path / "run").read_text()
    assert "the goal that was played" in html
    assert "another goal" not in html


def test_an_unfinished_run_has_a_report_that_says_so(tmp_path: Path) -> None:
    page = Elements()
    page.feed(write_report(write_run(tmp_path / "run", "x", finished=False)).read_text())
    assert "not finished" in page.text
    assert "Transcripts" in page.text


def test_redaction_leaves_no_sentence_and_no_goal(tmp_path: Path) -> None:
    secret = "an unmistakable sentence"
    folder = write_run(tmp_path / "run", secret)
    settings = json.loads((folder / "config.json").read_text())
    settings["config"]["model"] = settings["judge_id"] = "m"
    (folder / "config.json").write_text(json.dumps(settings))
    html = write_report(folder, redact=True).read_text()
    page = Elements()
    page.feed(html)
    transcripts = page.text[page.text.index("Transcripts") : page.text.index("Settings")]
    assert f"red [{len(secret)} characters]" in " ".join(transcripts.split())
    assert "goal an unmistakable" not in transcripts


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run directory"):
        write_report(tmp_path)


def test_the_closing_tables_fit_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    for table in result_tables(result("best response 1")):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "-0.100 [-0.30,+0.10]" in text
    assert "held-out gain" in text
    assert "0.300 on harmful goals" in text
    assert "0.750 on benign ones" in " ".join(text.split())


def in_stages() -> tuple[Result, tuple[Stage, ...]]:
    """A target tuned on an attacker that began at another one; every gap has figures of its own."""
    stages = (
        Stage(version="red_01@v1", recipe="sft", against="blue_00@v1"),
        Stage(version="red_02@v1", recipe="ppo-novelty", against="blue_00@v1", reference="red_01@v1"),
        Stage(version="blue_01@v1", recipe="safety", against="red_02@v1", sources=("red_02@v1",)),
    )
    gaps = [
        Gap(red_deviation="", blue_deviation="", red_gain=estimate(0.1 * k), blue_gain=estimate(-0.1 * k))
        for k in (1, 2, 3)
    ]
    return replace(result("x"), oracle_gaps=tuple(gaps)), stages


def test_of_a_run_in_stages_every_stage_has_its_gain_and_who_did_not_learn_has_none() -> None:
    found, stages = in_stages()
    rows = {row.what: row.texts for row in [*stage_rows(found, stages), restricted_row(found)]}
    assert rows == {
        "red_01 over red_00 vs blue_00": (str(estimate(0.1)), "did not learn"),
        "red_02 over red_01 vs blue_00": (str(estimate(0.2)), "did not learn"),
        "blue_01 over blue_00 vs red_02": ("did not learn", str(estimate(-0.3))),
        "restricted_gap": (str(estimate(-0.1)), "no other member"),  # blue has one
    }


def test_the_tables_of_a_run_in_stages_fit_eighty_columns() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    found, stages = in_stages()
    for table in result_tables(replace(found, blue=("blue_00@v1",)), stages):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "blue_01 over blue_00 vs red_02" in text
    assert "sum" not in text


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_table_is_readable_in_a_terminal_of_any_width(width: int) -> None:
    rows = tuple((f"red_0{k} PPO [x] attacker", *(f"{k}{column} % [2,9]" for column in range(8))) for k in range(3))
    header = ("attacker", *(f"against blue_0{column}" for column in range(8)))
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(text_table(TextTable(title="Success", header=header, rows=rows, note="In per cent.")))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    for name, *cells in rows:
        (here,) = (k for k, line in enumerate(lines) if line.startswith(name))
        below = " ".join(lines[here : here + 9])
        assert all(cell in below for cell in cells), (width, below)
    assert max(map(len, lines)) <= width
    assert "In per cent." in lines
    assert ("against blue_07 07 % [2,9]" in " ".join(lines)) == (width < 200)


@pytest.mark.parametrize("width", range(40, 131, 6))
def test_no_word_of_a_table_is_cut_at_any_width(width: int) -> None:
    members = tuple(f"blue_0{k}@v1" for k in range(4))
    found = replace(
        result("best response 1"),
        blue=members,
        labels=dict.fromkeys(members, "base model"),
        cells=tuple(row * 4 for row in result("").cells),
        harm_cells=tuple(row * 4 for row in result("").harm_cells),
        unhelpful_cells=tuple(row * 4 for row in result("").unhelpful_cells),
        blue_mixture=(0.25,) * 4,
        value_interval=(0.123456, 0.654321),
    )
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in result_tables(found):
        console.print(table)
    words = console.export_text().split()
    assert "…" not in " ".join(words)
    assert words.count("[0.12,0.65]") == 1
    assert words.count("blue_03") == 1 or width < 80


def test_training_curves_say_what_their_kl_is_of() -> None:
    steps = [{"version": "red_02@v1", "role": "red", "step": 0, "utility": 0.5, "kl": 0.1, "loss": 2.0}]
    lesson = {"version": "red_01@v1", "role": "red", "step": 0, "utility": None, "kl": None, "loss": 3.0}
    stages = in_stages()[1]
    assert [panel.title for panel in _panels([*steps, lesson], ())] == [
        "utility while training",
        "KL to the base model",
    ]
    both = {panel.title: list(panel.figures) for panel in _panels([*steps, lesson], stages)}
    assert list(both) == ["utility while training", "KL to where training began", "loss of maximum likelihood"]
    assert both["loss of maximum likelihood"] == [lesson]
    # A GFlowNet's steps have no KL, and a panel without any figure is left out.
    assert [panel.name for panel in _panels([{**steps[0], "kl": None}], stages)] == ["utility"]
    assert [panel.name for panel in _panels([lesson], stages)] == ["loss"]


def test_the_parts_of_the_value_are_weighted_by_both_mixtures() -> None:
    found = replace(
        result("x"),
        blue=("blue_00@v1", "blue_01@v1"),
        red_mixture=(0.25, 0.75),
        blue_mixture=(0.5, 0.5),
        harm_cells=((0.0, 0.4), (0.8, 0.0)),
        unhelpful_cells=((1.0, 1.0), (1.0, 0.0)),
    )
    assert found.value_by_kind == pytest.approx((0.25 * 0.5 * 0.4 + 0.75 * 0.5 * 0.8, 0.25 + 0.75 * 0.5))


def test_a_kind_of_goal_that_was_not_played_against_the_mixture_does_not_spoil_the_rest() -> None:
    found = replace(result("x"), red_mixture=(1.0, 0.0), harm_cells=((0.1,), (float("nan"),)))
    assert found.value_by_kind[0] == pytest.approx(0.1)


def dialogue(goal: str, utility: float, *, harmful: bool = True) -> Played:
    turns = () if harmful else ("please",)
    said = Transcript(
        goal=Goal(id=goal, text=f"goal {goal}", harmful=harmful, turns=turns),
        red_order=(0,),
        exchanges=(Exchange(red="r", blue="b"),),
        verdicts=(Verdict(harm=utility, refusal=0.0, helpful=0.0),),
        actions=(),
        utilities=(utility,),
        payments=(utility,),
        utility=utility,
        unscored=False,
    )
    return Played(red="red_00@v1", blue="blue_00@v1", seed=0, transcript=said)


def test_the_strongest_dialogue_of_each_goal_is_shown_first(tmp_path: Path) -> None:
    played = [dialogue("a", 0.0), dialogue("a", 0.9), dialogue("b", 0.4), dialogue("c", 1.0, harmful=False)]
    goals = GoalSet([item.transcript.goal for item in (played[0], played[2], played[3])])
    with TranscriptStore(tmp_path / "run.db", goals) as store:
        store.put_block("cell/r/b", played)
        sections = dict(_notable(store, store.block_names()))
    shown = {title: [(p.transcript.goal.id, p.transcript.utility) for p in items] for title, items in sections.items()}
    assert shown["Strongest attacks"] == [("a", 0.9), ("b", 0.4)]
    assert shown["Attacks that won least"] == [("a", 0.0), ("b", 0.4)]
    assert shown["Ordinary requests that blue failed most"] == [("c", 1.0)]


def test_results_survive_json() -> None:
    found = result("x")
    assert from_json(json.loads(json.dumps(to_json(found)))) == found
