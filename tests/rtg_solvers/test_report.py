"""The report: what it shows, and what hostile text in every field cannot do."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rtg_env.engine import Transcript
from rtg_env.errors import RunError
from rtg_env.goals import Goal, load
from rtg_env.transcripts import Played, TranscriptStore
from rtg_env.types import Action, Exchange, Verdict
from rtg_solvers.gaps import Gap
from rtg_solvers.measures import Estimate
from rtg_solvers.report import write_report
from rtg_solvers.result import Result, from_json, to_json

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
        red_mixture=(0.0, 1.0),
        blue_mixture=(1.0,),
        value=0.4,
        oracle_gap=gap,
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
    for text in ("0.400", "0.200 ± 0.100", "1 unscored", "-0.100 [-0.30,+0.10]", "restricted_gap"):
        assert text in page.text, text


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
    from rich.console import Console

    from rtg_solvers.terminal import result_tables

    console = Console(width=80, file=io.StringIO(), record=True)
    for table in result_tables(result("best response 1")):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "-0.100 [-0.30,+0.10]" in text
    assert "held-out goals" in text


def test_results_survive_json() -> None:
    found = result("x")
    assert from_json(json.loads(json.dumps(to_json(found)))) == found
